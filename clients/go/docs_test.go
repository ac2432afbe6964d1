package ruvd_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// sources parses the files of the package, without those of its tests.
func sources(t *testing.T) (*token.FileSet, []*ast.File) {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return set, files
}

// documentation returns what go doc shows of the package.
func documentation(t *testing.T) *doc.Package {
	t.Helper()
	set, files := sources(t)
	pages, err := doc.NewFromFiles(set, files, "github.com/ruvd/ruvd/clients/go")
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func TestEveryExportedNameHasAComment(t *testing.T) {
	pages := documentation(t)
	if pages.Doc == "" || len(pages.Types) == 0 {
		t.Fatal("the package has no documentation")
	}
	check := func(name, comment string) {
		if strings.TrimSpace(comment) == "" {
			t.Errorf("%s has no comment", name)
		}
	}
	checkValues := func(groups []*doc.Value) {
		for _, group := range groups {
			check(strings.Join(group.Names, ", "), group.Doc)
		}
	}
	checkFunctions := func(prefix string, functions []*doc.Func) {
		for _, function := range functions {
			check(prefix+function.Name, function.Doc)
		}
	}
	checkValues(pages.Consts)
	checkValues(pages.Vars)
	checkFunctions("", pages.Funcs)
	for _, kind := range pages.Types {
		check(kind.Name, kind.Doc)
		checkValues(kind.Consts)
		checkValues(kind.Vars)
		checkFunctions("", kind.Funcs)
		checkFunctions(kind.Name+".", kind.Methods)
		for _, field := range fields(kind) {
			check(kind.Name+"."+field.Names[0].Name, field.Doc.Text())
		}
	}
}

// fields returns the exported fields of a struct.
func fields(kind *doc.Type) (exported []*ast.Field) {
	for _, spec := range kind.Decl.Specs {
		definition, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType)
		if !ok {
			continue
		}
		for _, field := range definition.Fields.List {
			if len(field.Names) > 0 && field.Names[0].IsExported() {
				exported = append(exported, field)
			}
		}
	}
	return exported
}

// State is reached by methods only: the fields of a client, a completion and a batch are not exported.
func TestStateIsNotExported(t *testing.T) {
	for _, kind := range documentation(t).Types {
		switch kind.Name {
		case "Client", "Completion", "Batch":
			if exported := fields(kind); len(exported) > 0 {
				t.Errorf("%s exports %v", kind.Name, exported[0].Names)
			}
		}
	}
}

// A context is a parameter, because a struct that keeps one outlives the call that it belongs to.
func TestNoStructHasAContext(t *testing.T) {
	set, files := sources(t)
	for _, file := range files {
		ast.Inspect(file, func(node ast.Node) bool {
			definition, ok := node.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range definition.Fields.List {
				selector, ok := field.Type.(*ast.SelectorExpr)
				if ok && selector.Sel.Name == "Context" {
					t.Errorf("%v: a struct has a context", set.Position(field.Pos()))
				}
			}
			return true
		})
	}
}
