//! The state of a completion between its calls: where the next one is made, and when.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::connections::Connections;
use crate::error::Error;

/// The most times that a completion begins again, as its request may be what ends the daemons.
pub(crate) const MAX_RESTARTS: u32 = 3;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What the end of a call means for the completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The completion ends with the error.
    Final,
    /// The connection broke.
    Lost,
    /// The daemon has given the completion up, and it begins again elsewhere.
    Left,
    /// The daemon does not know the completion, which begins again.
    Forgotten,
    /// The daemon does not know the completion, of which something was delivered.
    Missing,
}

pub(crate) struct Tries {
    pub(crate) connections: Arc<Connections>,
    /// The position of the address of the newest call.
    pub(crate) at: usize,
    pub(crate) restarts: u32,
    /// Whether the newest call had an event.
    had_event: bool,
    broken: Option<Instant>,
    /// The number of calls without an event since then.
    failed: usize,
    /// The addresses that are still to be asked for a completion that a daemon does not have, and
    /// that daemon's error.
    missing: Option<(Error, VecDeque<usize>)>,
}

impl Tries {
    pub(crate) fn new(connections: Arc<Connections>) -> Self {
        let at = connections.now();
        Self {
            connections,
            at,
            restarts: 0,
            had_event: false,
            broken: None,
            failed: 0,
            missing: None,
        }
    }

    pub(crate) fn event_received(&mut self) {
        self.had_event = true;
        self.broken = None;
    }

    /// Decides where the next call is made, and returns the pause before it, and the time since the
    /// first of the failures without an event between them.
    ///
    /// The error is that which ends the completion.
    pub(crate) fn after(
        &mut self,
        kind: Failure,
        error: &Error,
    ) -> Result<(Duration, Duration), Error> {
        let progressed = std::mem::take(&mut self.had_event);
        let now = Instant::now();
        if self.broken.is_none() {
            self.failed = 0;
            self.missing = None;
        }
        let since = now - *self.broken.get_or_insert(now);
        let several = self.connections.are_several;
        if kind == Failure::Final || kind == Failure::Missing && !several {
            return Err(error.clone());
        }
        if !several {
            return Ok((next_pause(since), since));
        }
        if kind == Failure::Missing && self.missing.is_none() {
            self.missing = Some((error.clone(), self.connections.others(self.at).collect()));
        }
        if let Some((missing, others)) = &mut self.missing {
            self.at = others.pop_front().ok_or_else(|| missing.clone())?; // The client stays.
            return Ok((Duration::ZERO, since));
        }
        if kind == Failure::Forgotten || kind == Failure::Lost && progressed {
            return Ok((Duration::ZERO, since)); // The daemon may run, and then has the completion.
        }
        self.failed += 1;
        self.connections.leave(self.at, kind == Failure::Left);
        self.at = self.connections.now();
        let is_round = self.failed.is_multiple_of(self.connections.round_length());
        Ok((if is_round { next_pause(since) } else { Duration::ZERO }, since))
    }
}

/// The pause after a failed attempt. It doubles with each attempt, as attempts fail at once.
pub(crate) fn next_pause(since_failure: Duration) -> Duration {
    (since_failure + FIRST_PAUSE).min(LONGEST_PAUSE)
}
