// Calls the daemon with OpenAI's client for Node, and prints what it got as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "echo";
const seen = {};

const question = (content) => [{ role: "user", content }];
const answer = await client.chat.completions.create({ model, messages: question("hello you") });
seen.answer = answer.choices[0].message.content;
seen.tokens = answer.usage.total_tokens;

seen.stream = "";
const stream = await client.chat.completions.create({
  model,
  messages: question("hello you"),
  stream: true,
});
for await (const chunk of stream) seen.stream += chunk.choices[0]?.delta?.content ?? "";

const parameters = { type: "object", properties: { text: { type: "string" } } };
const called = await client.chat.completions.create({
  model,
  messages: question("please look"),
  tools: [{ type: "function", function: { name: "look", parameters } }],
});
const call = called.choices[0].message.tool_calls[0];
seen.tool = [call.function.name, JSON.parse(call.function.arguments)];

const structured = await client.chat.completions.create({
  model,
  messages: question("hi"),
  response_format: { type: "json_schema", json_schema: { name: "answer", schema: parameters } },
});
seen.structured = JSON.parse(structured.choices[0].message.content);

const session = { headers: { "X-Ruvd-Session-Id": process.argv[3] } };
await client.chat.completions.create({ model, messages: question("one") }, session);
const second = await client.chat.completions.create({ model, messages: question("two") }, session);
seen.sessionTokens = second.usage.prompt_tokens;

try {
  await client.chat.completions.create({ model, messages: question("!fault CONTEXT_TOO_LONG") });
} catch (error) {
  seen.error = [error.status, error.code];
}

const first = await client.responses.create({ model, input: "one two" });
const next = await client.responses.create({
  model,
  input: "three",
  previous_response_id: first.id,
});
seen.response = [first.output_text, next.usage.input_tokens];
const events = await client.responses.create({ model, input: "a b", stream: true });
seen.events = [];
for await (const event of events) seen.events.push([event.type, event.sequence_number]);
console.log(JSON.stringify(seen));
