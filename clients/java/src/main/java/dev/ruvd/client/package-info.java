/**
 * The client of ruvd. {@link dev.ruvd.client.RuvdClient} has a method for each call of {@code
 * ruvd.v1.SessionService}, and {@link dev.ruvd.client.CompletionStream} is a running completion.
 *
 * <p>Requests and responses are the generated messages of {@code dev.ruvd.v1}. What may be null is
 * annotated; everything else may not be.
 */
@NullMarked
package dev.ruvd.client;

import org.jspecify.annotations.NullMarked;
