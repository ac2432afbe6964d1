/**
 * An example of a chat with server-sent events: `PORT=8080 ./run example`, then
 * `curl -N 'http://127.0.0.1:8080/chat?session=ada&message=Hello'`.
 */

import express from "express";

import { Client, RuvdError } from "@ruvd/client";

const client = new Client();
const app = express();

app.get("/chat", async (request, response) => {
  const { session = "", message = "" } = request.query as Record<string, string>;
  const answer = client.complete(message, { sessionId: session });
  response.on("close", () => {
    answer.cancel(); // Has no effect after the end of the answer.
  });
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  try {
    for await (const text of answer) response.write(`data: ${JSON.stringify(text)}\n\n`);
    response.end("event: done\ndata: {}\n\n");
  } catch (error) {
    if (!(error instanceof RuvdError)) throw error;
    const { reason, message } = error;
    response.end(`event: error\ndata: ${JSON.stringify({ reason, message })}\n\n`);
  }
});

app.listen(Number(process.env.PORT ?? 8080), "127.0.0.1");
