package dev.ruvd.client;

import dev.ruvd.v1.Message;

/**
 * What came of one item of a batch: a completion or an error, the other is null.
 *
 * @param index which item, from 0 on
 * @param completion its answer
 * @param error what its own call would have thrown
 */
public record BatchOutcome(int index, dev.ruvd.v1.Completion completion, RuvdException error) {

  /** The whole answer. Throws the item's error. */
  public Message message() {
    if (error != null) {
      throw error;
    }
    return completion.getFinished().getMessage();
  }

  /** The answer's text. Throws the item's error. */
  public String text() {
    return message().getContent();
  }
}
