//! Time-outs and retries, from the same service config that every client uses.
//!
//! tonic has no service config, so its copy is read here and `call` does what it says.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use serde_json::Value;
use tonic::Code;

static RULES: LazyLock<HashMap<String, Rule>> =
    LazyLock::new(|| rules().expect("service_config.json is ours, and a test reads it"));

/// What holds for one method; by default no time-out, and one try.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    /// For all tries together.
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<Retry>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Retry {
    max_attempts: u32,
    initial_backoff: Duration,
    max_backoff: Duration,
    multiplier: f64,
    codes: Vec<String>,
}

impl Rule {
    /// The rule of a method of `ruvd.v1.SessionService`.
    pub(crate) fn of(method: &str) -> Self {
        RULES.get(method).cloned().unwrap_or_default()
    }

    /// How long to wait before another try, after so many; `None` if there is to be none. There is
    /// no jitter: the daemon is beside one service, and not before thousands.
    pub(crate) fn pause(&self, code: Code, attempts: u32) -> Option<Duration> {
        let retry = self.retry.as_ref()?;
        // UNAVAILABLE there is Unavailable here.
        let code = format!("{code:?}").to_uppercase();
        let repeated = retry.codes.iter().any(|each| each.replace('_', "") == code);
        let backoff = f64::from(attempts - 1);
        let backoff = retry.initial_backoff.mul_f64(retry.multiplier.powf(backoff));
        (repeated && attempts < retry.max_attempts).then(|| backoff.min(retry.max_backoff))
    }
}

/// The rules by method, `None` if the config is not what this reads.
fn rules() -> Option<HashMap<String, Rule>> {
    let config: Value = serde_json::from_str(include_str!("../service_config.json")).ok()?;
    let mut rules = HashMap::new();
    for each in config["methodConfig"].as_array()? {
        let retry = match each.get("retryPolicy") {
            Some(policy) => Some(Retry {
                max_attempts: policy["maxAttempts"].as_u64()?.try_into().ok()?,
                initial_backoff: seconds(&policy["initialBackoff"])?,
                max_backoff: seconds(&policy["maxBackoff"])?,
                multiplier: policy["backoffMultiplier"].as_f64()?,
                codes: serde_json::from_value(policy["retryableStatusCodes"].clone()).ok()?,
            }),
            None => None,
        };
        let timeout = match each.get("timeout") {
            Some(timeout) => Some(seconds(timeout)?),
            None => None,
        };
        for name in each["name"].as_array()? {
            let rule = Rule { timeout, retry: retry.clone() };
            rules.insert(name["method"].as_str()?.to_owned(), rule);
        }
    }
    Some(rules)
}

/// A Duration as JSON writes it, `"0.1s"`.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read is tried again while there is nobody, each time later, and not for another reason.
    #[test]
    fn reads_are_repeated() {
        let rule = Rule::of("GetSession");
        let pauses: Vec<_> = (1..=4).map(|n| rule.pause(Code::Unavailable, n)).collect();
        let milliseconds = |n| Some(Duration::from_millis(n));
        assert_eq!(pauses, [milliseconds(100), milliseconds(200), milliseconds(400), None]);
        assert_eq!(rule.pause(Code::NotFound, 1), None);
        assert_eq!(rule.timeout, Some(Duration::from_secs(10)));
    }

    /// What writes has a time-out and is never repeated; a completion has neither.
    #[test]
    fn writes_are_not_repeated() {
        let rule = Rule::of("EndSession");
        assert_eq!(rule.timeout, Some(Duration::from_secs(30)));
        assert_eq!(rule.pause(Code::Unavailable, 1), None);
        assert_eq!(Rule::of("Complete"), Rule::default());
    }
}
