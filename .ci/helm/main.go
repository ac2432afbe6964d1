// Command helm-offline is the part of helm's command line that the tests of deploy/helm need, made of
// Helm's own packages:
//
//	helm-offline lint --strict CHART [--values FILE]... [--set-json NAME=JSON]...
//	helm-offline template RELEASE CHART [--namespace NAME] [--values FILE]... [--set-json NAME=JSON]...
//	helm-offline install RELEASE CHART --dry-run=client ...   prints the chart's notes
//
// helm itself has 1,184 packages instead of 651, for clusters, registries and plugins. With an empty
// cache it took 230 s of CPU time to build, and this takes 123 s (Go 1.26.8, 2 cores, 2026-11-30). The
// tests use helm where it is installed.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
)

// texts is a flag that may be repeated.
type texts []string

func (t *texts) String() string { return strings.Join(*t, ",") }

func (t *texts) Set(text string) error {
	*t = append(*t, text)
	return nil
}

// options are the flags of all commands.
type options struct {
	namespace string
	files     texts
	pairs     texts
}

// values merges the files and then the pairs, as helm does.
func (o *options) values() (map[string]any, error) {
	merged := map[string]any{}
	for _, file := range o.files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		read, err := common.ReadValues(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		merged = loader.MergeMaps(merged, read)
	}
	for _, pair := range o.pairs {
		if err := strvals.ParseJSON(pair, merged); err != nil {
			return nil, fmt.Errorf("%s: %w", pair, err)
		}
	}
	return merged, nil
}

// parse reads flags that stand anywhere among the arguments, and returns the other arguments.
func (o *options) parse(command string, arguments []string) ([]string, error) {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.StringVar(&o.namespace, "namespace", "default", "namespace of the release")
	flags.Var(&o.files, "values", "file of values; may be repeated")
	flags.Var(&o.pairs, "set-json", "NAME=JSON; may be repeated")
	flags.Bool("strict", true, "warnings are failures; always so here")
	flags.String("dry-run", "client", "always client here")
	var others []string
	for len(arguments) > 0 {
		if err := flags.Parse(arguments); err != nil {
			return nil, err
		}
		if arguments = flags.Args(); len(arguments) > 0 {
			others = append(others, arguments[0])
			arguments = arguments[1:]
		}
	}
	return others, nil
}

// render returns the contents of a chart's files by their paths.
func (o *options) render(release, folder string) (map[string]string, error) {
	chart, err := loader.Load(folder)
	if err != nil {
		return nil, err
	}
	values, err := o.values()
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependencies(chart, values); err != nil {
		return nil, err
	}
	version := common.DefaultCapabilities.KubeVersion.Version
	if wanted := chart.Metadata.KubeVersion; wanted != "" && !chartutil.IsCompatibleRange(wanted, version) {
		return nil, fmt.Errorf("the chart needs kubeVersion %s, not %s", wanted, version)
	}
	about := common.ReleaseOptions{Name: release, Namespace: o.namespace, Revision: 1, IsInstall: true}
	top, err := util.ToRenderValues(chart, values, about, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, top)
}

func (o *options) lint(folders []string) error {
	values, err := o.values()
	if err != nil {
		return err
	}
	failed := false
	for _, folder := range folders {
		fmt.Printf("==> Linting %s\n", folder)
		for _, message := range lint.RunAll(folder, values, o.namespace).Messages {
			fmt.Println(message)
			failed = failed || message.Severity >= support.WarningSev
		}
	}
	if failed {
		return fmt.Errorf("charts failed")
	}
	return nil
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return fmt.Errorf("the commands are lint, template and install")
	}
	var o options
	others, err := o.parse(arguments[0], arguments[1:])
	if err != nil {
		return err
	}
	if arguments[0] == "lint" {
		return o.lint(others)
	}
	if len(others) != 2 {
		return fmt.Errorf("name a release and a chart")
	}
	rendered, err := o.render(others[0], others[1])
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		content := rendered[name]
		isNotes := path.Base(name) == "NOTES.txt"
		switch {
		case arguments[0] == "install" && isNotes:
			fmt.Printf("NOTES:\n%s\n", content)
		case arguments[0] == "template" && !isNotes && !strings.HasPrefix(path.Base(name), "_"):
			fmt.Printf("---\n# Source: %s\n%s\n", name, content)
		}
	}
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}
