//! Requests in a line: what a text becomes, and what every completion is given.

use uuid::Uuid;

use crate::v1::{CompleteRequest, Message, Role, ToolCall};

const GRACE: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };

impl Message {
    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User.into(), content: content.into(), ..Self::default() }
    }

    /// What came of a tool call: a message of the next turn, as is that of every other call.
    pub fn tool_result(call: &ToolCall, content: impl Into<String>) -> Self {
        Self {
            role: Role::Tool.into(),
            tool_call_id: call.id.clone(),
            content: content.into(),
            ..Self::default()
        }
    }
}

impl CompleteRequest {
    /// The same in a session, which is created if there is none; without, it is stateless.
    #[must_use]
    pub fn in_session(mut self, session_id: impl Into<String>) -> Self {
        self.session_id = session_id.into();
        self
    }

    /// With a request id, so that it can be repeated without generating twice.
    pub(crate) fn named(mut self) -> Self {
        if self.request_id.is_empty() {
            self.request_id = Uuid::new_v4().to_string();
        }
        self
    }

    /// With what it takes to come back to it when its stream is cut.
    pub(crate) fn resumable(mut self) -> Self {
        self.disconnect_grace.get_or_insert(GRACE);
        self.named()
    }
}

impl From<Vec<Message>> for CompleteRequest {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl From<Message> for CompleteRequest {
    fn from(message: Message) -> Self {
        vec![message].into()
    }
}

/// One message of the user.
impl From<&str> for CompleteRequest {
    fn from(content: &str) -> Self {
        Message::user(content).into()
    }
}

/// One message of the user.
impl From<String> for CompleteRequest {
    fn from(content: String) -> Self {
        Message::user(content).into()
    }
}
