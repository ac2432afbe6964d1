//! Messages that the daemon sends in parts, because they are too large for one response.

use prost::Message as _;
use tonic::Code;

use crate::error::Error;
use crate::v1::batch_complete_response::Event;
use crate::v1::batch_result::Outcome;
use crate::v1::{Finished, Message, MessagePart};

/// The parts of one message, as they come.
#[derive(Default)]
pub(crate) struct MessageParts {
    data: Vec<u8>,
    total: i64,
}

impl MessageParts {
    /// Adds the next part. The error is `DATA_LOSS` if one before it is missing.
    pub(crate) fn add(&mut self, part: &MessagePart) -> Result<(), Error> {
        if part.offset == 0 {
            self.data.clear();
        }
        if usize::try_from(part.offset) != Ok(self.data.len()) {
            return Err(part_is_missing());
        }
        self.data.extend_from_slice(&part.data);
        self.total = part.total_bytes;
        Ok(())
    }

    /// Returns the message once all its parts have come, and forgets them.
    pub(crate) fn take(&mut self) -> Option<Message> {
        let is_whole = usize::try_from(self.total).is_ok_and(|total| self.data.len() >= total);
        if self.total == 0 || !is_whole {
            return None;
        }
        self.total = 0;
        Message::decode(std::mem::take(&mut self.data).as_slice()).ok()
    }

    /// Sets the message of a Finished that was sent in parts.
    pub(crate) fn join(&mut self, finished: &mut Finished) -> Result<(), Error> {
        if finished.message_in_parts {
            finished.message = Some(self.take().ok_or_else(part_is_missing)?);
        }
        Ok(())
    }

    /// Returns an event of a batch for its caller, with the message of its result; None for a part.
    pub(crate) fn join_batch(&mut self, event: Option<Event>) -> Result<Option<Event>, Error> {
        match event {
            Some(Event::MessagePart(part)) => self.add(&part).map(|()| None),
            Some(Event::Result(mut result)) => {
                if let Some(Outcome::Completion(completion)) = &mut result.outcome
                    && let Some(finished) = &mut completion.finished
                {
                    self.join(finished)?;
                }
                Ok(Some(Event::Result(result)))
            }
            other => Ok(other),
        }
    }
}

fn part_is_missing() -> Error {
    Error::local(Code::DataLoss, "a part of a large message is missing")
}
