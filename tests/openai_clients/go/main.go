// Calls the daemon with OpenAI's client for Go, and prints what it got as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

const model = "echo"

func main() {
	context := context.Background()
	client := openai.NewClient(
		option.WithBaseURL(os.Args[1]), option.WithAPIKey("none"), option.WithMaxRetries(0))
	seen := map[string]any{}

	answer := must(client.Chat.Completions.New(context, question("hello you")))
	seen["answer"] = answer.Choices[0].Message.Content
	seen["tokens"] = answer.Usage.TotalTokens

	text := ""
	stream := client.Chat.Completions.NewStreaming(context, question("hello you"))
	for stream.Next() {
		if chunk := stream.Current(); len(chunk.Choices) > 0 {
			text += chunk.Choices[0].Delta.Content
		}
	}
	check(stream.Err())
	seen["stream"] = text

	parameters := map[string]any{
		"type": "object", "properties": map[string]any{"text": map[string]any{"type": "string"}}}
	asked := question("please look")
	asked.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(
		openai.FunctionDefinitionParam{Name: "look", Parameters: parameters})}
	call := must(client.Chat.Completions.New(context, asked)).Choices[0].Message.ToolCalls[0]
	seen["tool"] = []any{call.Function.Name, json.RawMessage(call.Function.Arguments)}

	asked = question("hi")
	asked.ResponseFormat.OfJSONSchema = &openai.ResponseFormatJSONSchemaParam{
		JSONSchema: openai.ResponseFormatJSONSchemaJSONSchemaParam{Name: "answer", Schema: parameters}}
	structured := must(client.Chat.Completions.New(context, asked))
	seen["structured"] = json.RawMessage(structured.Choices[0].Message.Content)

	session := option.WithHeader("X-Ruvd-Session-Id", os.Args[2])
	must(client.Chat.Completions.New(context, question("one"), session))
	second := must(client.Chat.Completions.New(context, question("two"), session))
	seen["sessionTokens"] = second.Usage.PromptTokens

	_, err := client.Chat.Completions.New(context, question("!fault CONTEXT_TOO_LONG"))
	var refused *openai.Error
	if errors.As(err, &refused) {
		seen["error"] = []any{refused.StatusCode, refused.Code}
	}

	first := must(client.Responses.New(context, input("one two")))
	more := input("three")
	more.PreviousResponseID = openai.String(first.ID)
	next := must(client.Responses.New(context, more))
	seen["response"] = []any{first.OutputText(), next.Usage.InputTokens}
	events := client.Responses.NewStreaming(context, input("a b"))
	numbers := []any{}
	for events.Next() {
		event := events.Current()
		numbers = append(numbers, []any{event.Type, event.SequenceNumber})
	}
	check(events.Err())
	seen["events"] = numbers
	check(json.NewEncoder(os.Stdout).Encode(seen))
}

func question(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
	}
}

func input(text string) responses.ResponseNewParams {
	return responses.ResponseNewParams{
		Model: model,
		Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(text)},
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
