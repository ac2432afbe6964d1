package ruvd_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	ruvd "github.com/ruvd/ruvd/clients/go"
	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

func Example() {
	client, err := ruvd.New() // RUVD_ADDRESS or 127.0.0.1:50051
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	answer := client.Complete("What is a sidecar?", ruvd.WithSession("ada"))
	for text, err := range answer.Text(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(text)
	}
	fmt.Println(answer.Finished().GetUsage())
}

func ExampleError() {
	client, err := ruvd.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	request := &ruvdv1.GetSessionRequest{SessionId: "nobody"}
	_, err = client.GetSession(context.Background(), request)
	var failure *ruvd.Error
	if errors.As(err, &failure) && failure.Reason == ruvd.ReasonSessionNotFound {
		fmt.Println("there is no such session")
	}
}

func ExampleClient_Batch() {
	client, err := ruvd.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	batch := client.Batch(0, ruvd.Request("What is a pier?"), ruvd.Request("And a quay?"))
	for outcome, err := range batch.Outcomes(context.Background()) {
		if err != nil {
			log.Fatal(err) // the whole call has failed
		}
		fmt.Println(outcome.Index, outcome.Completion.GetFinished().GetMessage().GetContent(), outcome.Err)
	}
	fmt.Println(batch.Summary())
}
