package main

import (
	"bufio"
	"context"
	"log"
	"os"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// identity makes the calls of `PROGRAM identity WAY` for each line of standard input.
func identity(way string) {
	client, err := ruvd.New(identityOptions(way)...)
	if err != nil {
		line("refused")
		return
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		identityCalls(client, lines.Text())
	}
	must(client.Close())
}

func identityOptions(way string) []ruvd.ClientOption {
	file := os.Getenv("TEST_TOKEN_FILE")
	options := []ruvd.ClientOption{ruvd.WithAddress(os.Getenv("TEST_ADDRESS"))}
	switch way {
	case "environment":
		return nil
	case "value":
		options = append(options, ruvd.WithToken(os.Getenv("TEST_TOKEN")))
	case "file":
		options = append(options, ruvd.WithTokenFile(file))
	case "function":
		options = append(options, ruvd.WithTokenSource(func(context.Context) (string, error) {
			token, err := os.ReadFile(file)
			return string(token), err
		}))
	default:
		log.Fatalf("unknown way %s", way)
	}
	if ca := os.Getenv("TEST_TLS_CA_FILE"); ca != "" {
		options = append(options, ruvd.WithTLS(ruvd.TLSConfig{
			CAFile:     ca,
			CertFile:   os.Getenv("TEST_TLS_CLIENT_CERT_FILE"),
			KeyFile:    os.Getenv("TEST_TLS_CLIENT_KEY_FILE"),
			ServerName: os.Getenv("TEST_TLS_SERVER_NAME"),
		}))
	}
	return options
}

func identityCalls(client *ruvd.Client, name string) {
	_, err := client.ListModels(ctx, &ruvdv1.ListModelsRequest{})
	printResult("models", "ok", err)

	answer := client.Complete("one two", ruvd.WithSession(name), ruvd.WithRequestID(name))
	message, err := answer.Message(ctx)
	printResult("complete", "["+message.GetContent()+"]", err)

	answer = client.ResumeCompletion(
		&ruvdv1.ResumeCompletionRequest{SessionId: name, RequestId: name},
	)
	message, err = answer.Message(ctx)
	printResult("resume", "["+message.GetContent()+"]", err)

	_, err = client.CancelCompletion(
		ctx, &ruvdv1.CancelCompletionRequest{SessionId: name, RequestId: name},
	)
	printResult("cancel", "ok", err)

	for outcome, err := range client.Batch(0, ruvd.Request("three")).Outcomes(ctx) {
		text := ""
		if err == nil {
			text = outcome.Completion.GetFinished().GetMessage().GetContent()
		}
		printResult("batch", "["+text+"]", err)
	}
}

func printResult(call, result string, err error) {
	if err != nil {
		line("%s error %s %s", call, codeOf(err), reasonOf(err))
	} else {
		line("%s %s", call, result)
	}
}
