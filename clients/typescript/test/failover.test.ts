/** Tests of several addresses, and of the calls of a batch, without a daemon. */

/* eslint-disable @typescript-eslint/no-floating-promises -- node:test awaits its tests itself */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { Address, countAttempts, parseAddresses } from "../src/addresses.js";
import { BatchCalls } from "../src/batch-calls.js";
import { Channels } from "../src/channels.js";
import { Client, RuvdError, status } from "../src/client.js";
import { UnaryAttempts } from "../src/failover.js";
import { securityOf } from "../src/security.js";
import { ErrorInfo } from "../src/v1/google/rpc/error_details.js";
import { CompleteRequest, Started } from "../src/v1/ruvd/v1/session_service.js";
import { ScriptedDaemon } from "./scripted-daemon.js";

function failure(code: status, reason = ""): RuvdError {
  const value = Buffer.from(ErrorInfo.encode({ reason, domain: "ruvd", metadata: {} }).finish());
  const details = reason ? [{ typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value }] : [];
  return new RuvdError(code, "as scripted", details);
}

const LOST = failure(status.UNAVAILABLE);
const STOPPING = failure(status.UNAVAILABLE, "SHUTTING_DOWN");
const NOT_FOUND = failure(status.NOT_FOUND, "COMPLETION_NOT_FOUND");

describe("a list of addresses", () => {
  it("has the forms of single addresses with spaces around them", () => {
    const text = "a:7000, 127.0.0.1:1,[::1]:1 ,unix:/r.sock,unix:///r.sock,unix:r,dns:///b:65535";
    const targets = parseAddresses(text).map(({ target }) => target);
    assert.deepEqual(
      targets,
      text.split(",").map((entry) => entry.trim()),
    );
  });

  it("names a wrong entry and its position", () => {
    const wrong = ["", "b", "b:", ":1", "b:0", "b:65536", "http://b:1", "unix:", "unix://", "::1"];
    for (const entry of wrong) {
      assert.throws(
        () => new Client(`a:7000,${entry},c:7000`),
        (error) => error instanceof RuvdError && error.message.includes(`entry 2 of the addresses`),
        entry,
      );
    }
  });

  it("is one address only without a comma and without a name", () => {
    const one = ["127.0.0.1:1", "[::1]:1", "ipv4:127.0.0.1:1", "unix:/r.sock", "unix-abstract:r"];
    for (const text of one) assert.equal(countAttempts(parseAddresses(text)), 1, text);
    for (const text of ["localhost:1", "dns:///daemons:1", "127.0.0.1:1,127.0.0.1:2"]) {
      assert.equal(countAttempts(parseAddresses(text)), 2, text);
    }
    assert.deepEqual(parseAddresses("xds:///anything"), [new Address("xds:///anything")]);
  });

  it("needs TLS for a token if one of them is not local", () => {
    const mixed = "unix:/r.sock,example.org:1";
    assert.throws(() => new Client(mixed, { token: "secret" }), /not be sent to example.org:1/);
    new Client(mixed, { token: "secret", tls: {} }).close();
    new Client("unix:/r.sock,localhost:1", { token: "secret" }).close();
  });
});

describe("the channels", () => {
  const open = (text: string): Channels => {
    const addresses = parseAddresses(text);
    return new Channels(addresses, securityOf(addresses, {}));
  };

  it("begin with a random one, go round, and move once for calls that fail together", () => {
    const starts = new Set<string>();
    for (let count = 0; count < 100; count++) {
      const channels = open("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3");
      const first = channels.current;
      starts.add(first.address.target);
      const second = channels.after(first, "failOver");
      assert.equal(channels.after(first, "failOver"), second);
      assert.equal(channels.current, second);
      assert.equal(channels.after(channels.after(second, "failOver"), "failOver"), first);
      channels.close();
    }
    assert.equal(starts.size, 3);
  });

  it("are asked without moving the client", () => {
    const channels = open("127.0.0.1:1,127.0.0.1:2");
    const first = channels.current;
    assert.notEqual(channels.after(first, "ask"), first);
    assert.equal(channels.after(first, "stay"), first);
    assert.equal(channels.current, first);
    channels.close();
  });

  it("to a name are renewed when a daemon stops, and closed after their calls", () => {
    const channels = open("localhost:1");
    const first = channels.current;
    assert.equal(channels.after(first, "failOver"), first);
    first.begin();
    const second = channels.after(first, "leave");
    assert.notEqual(second, first);
    assert.equal(channels.after(first, "leave"), second);
    assert.equal(first.isClosed, false);
    first.end();
    assert.equal(first.isClosed, true);
    channels.close();
  });
});

describe("a unary call", () => {
  it("is repeated at once, and pauses after each of four rounds", () => {
    const attempts = new UnaryAttempts("UpdateSession", {}, Infinity, 2);
    const pauses = Array.from({ length: 7 }, () => attempts.handleFailure(LOST).pauseMs);
    assert.deepEqual(pauses, [0, 100, 0, 200, 0, 400, 0]);
    assert.throws(() => attempts.handleFailure(LOST), LOST);
  });

  it("fails over for certain errors only", () => {
    const step = (method: string, error: RuvdError): string =>
      new UnaryAttempts(method, {}, Infinity, 2).handleFailure(error).step;
    assert.equal(step("ForkSession", LOST), "failOver");
    assert.equal(step("ForkSession", STOPPING), "leave");
    assert.equal(step("ForkSession", failure(status.ABORTED, "OWNERSHIP_LOST")), "leave");
    assert.equal(step("CancelCompletion", NOT_FOUND), "ask");
    const storeDown = failure(status.UNAVAILABLE, "STORE_UNAVAILABLE");
    assert.equal(step("GetSession", storeDown), "failOver");
    for (const error of [storeDown, failure(status.ABORTED, "SESSION_BUSY")]) {
      assert.throws(() => step("ForkSession", error), error);
    }
  });

  it("cannot happen twice", () => {
    const [fork, end]: { requestId?: string; allowMissing?: boolean }[] = [{}, {}];
    assert.ok(fork && end);
    new UnaryAttempts("ForkSession", fork, Infinity, 2);
    assert.ok(fork.requestId);
    const attempts = new UnaryAttempts("EndSession", end, Infinity, 3);
    attempts.handleFailure(STOPPING);
    assert.equal(end.allowMissing, undefined);
    attempts.handleFailure(LOST);
    assert.equal(end.allowMissing, true);
  });
});

describe("an answer that the client collects", () => {
  it("begins again where the daemon has lost it, and a streamed one does not", async () => {
    const event = { sequence: 2, delta: { text: "old" } };
    const started = { sequence: 1, started: Started.fromPartial({ completionId: "c" }) };
    const lost = { events: [started, event], end: { code: status.UNAVAILABLE } };
    const forgotten = { end: { code: status.NOT_FOUND, reason: "COMPLETION_NOT_FOUND" } };
    const daemon = await new ScriptedDaemon(lost, forgotten, lost, forgotten).listen();
    const client = new Client(daemon.address);
    const read = async () => {
      for await (const text of client.complete("x", { sessionId: "s" })) assert.equal(text, "old");
    };
    await assert.rejects(read(), { reason: "COMPLETION_NOT_FOUND" });
    assert.deepEqual(daemon.calls, ["Complete", "ResumeCompletion"]);
    await assert.rejects(client.complete("x").text(), { reason: "NO_SCRIPT" });
    assert.deepEqual(daemon.calls.slice(2), ["Complete", "ResumeCompletion", "Complete"]);
    client.close();
    daemon.stop();
  });
});

describe("the calls of a batch", () => {
  const limits = { maxCallBytes: 100, reconnectMs: 60_000, attemptsPerRound: 1 };
  const item = (length: number): CompleteRequest =>
    CompleteRequest.fromPartial({ messages: [{ content: "x".repeat(length) }] });

  it("are of at most the given size, and a larger item is alone", () => {
    const calls = new BatchCalls(limits);
    const sizes: number[][] = [];
    const take = () => {
      for (let call = calls.next(); call; call = calls.next()) sizes.push([...call.indexes]);
    };
    for (const length of [10, 10, 10, 500, 10]) if (calls.add(item(length))) take();
    calls.flush();
    take();
    assert.deepEqual(sizes, [[0, 1, 2], [3], [4]]);
  });

  it("are split until a rejected item is alone", () => {
    const calls = new BatchCalls(limits);
    for (let count = 0; count < 3; count++) calls.add(item(1));
    calls.flush();
    const rejected = failure(status.INVALID_ARGUMENT, "INVALID_REQUEST");
    const tried: number[][] = [];
    const outcomes: number[] = [];
    for (let call = calls.next(); call; call = calls.next()) {
      tried.push([...call.indexes]);
      const outcome = calls.handleFailure(call, rejected);
      if (outcome) outcomes.push(outcome.index);
    }
    assert.deepEqual(tried, [[0, 1, 2], [0], [1, 2], [1], [2]]);
    assert.deepEqual([outcomes, calls.summary.failed], [[0, 1, 2], 3]);
  });

  it("repeat the items without an outcome, at other addresses at once", () => {
    const calls = new BatchCalls({ ...limits, attemptsPerRound: 2 });
    calls.add(item(1));
    calls.flush();
    const call = calls.next();
    assert.ok(call);
    assert.equal(calls.handleFailure(call, LOST), undefined);
    assert.deepEqual(calls.finish(call, LOST), { step: "failOver", pauseMs: 0 });
    const again = calls.next();
    assert.deepEqual(again?.unfinished, call.unfinished);
    assert.throws(() => calls.handleFailure(again, LOST), LOST);
  });
});
