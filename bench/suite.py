"""What `python -m bench` runs, one after the other, and how long each may be in its three forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A module of `bench` that prints its figures and writes them with `--json FILE`.

    `quick`, `standard` and `full` are its arguments. `asked_only`: it is run when it is named, and
    else not. `markdown`: what it prints can stand in a page as it is. `plots` are the names of its
    pictures, without their suffix.
    """

    name: str
    title: str
    question: str
    quick: Sequence[str]
    standard: Sequence[str]
    full: Sequence[str] = ()
    asked_only: bool = False
    markdown: bool = False
    plots: Sequence[str] = ()

    def arguments(self, form: str) -> Sequence[str]:
        """Those of a form: quick, standard or full."""
        forms: Mapping[str, Sequence[str]] = {
            "quick": self.quick,
            "standard": self.standard,
            "full": self.full,
        }
        return forms[form]


STEPS = (
    Step(
        "relay",
        "Overhead",
        "What does ruvd cost between a client and an OpenAI-compatible server, beside others?",
        quick=("--quick",),
        standard=(),
        full=("--rounds", "5", "--seconds", "3"),
        markdown=True,
        plots=("relay_rate", "relay_first_token", "relay_pod"),
    ),
    Step(
        "multi_turn",
        "Conversations",
        "What does a session save over many turns, and where does it save nothing?",
        quick=("--quick", "--only", "warm"),
        standard=("--quick",),
        markdown=True,
        plots=("multi_turn",),
    ),
    Step(
        "answers",
        "Answers",
        "Does what is kept warm change an answer? Real conversations, asked again without a cache.",
        quick=("--conversations", "1"),
        standard=("--quick",),
        markdown=True,
    ),
    Step(
        "batch",
        "Batches",
        "What does BatchComplete gain, and what does it cost those who chat meanwhile?",
        quick=("--quick", "--rounds", "1", "--only", "remote"),
        standard=("--quick", "--rounds", "1", "--only", "remote", "document", "chat"),
        plots=("batch",),
    ),
    Step(
        "telemetry",
        "Telemetry",
        "What does telemetry cost?",
        quick=("--quick",),
        standard=("--rounds", "3", "--seconds", "2"),
        markdown=True,
        plots=("telemetry",),
    ),
    Step(
        "store",
        "Store",
        "What does a store's size cost?",
        quick=("--quick",),
        standard=("--repeats", "3"),
    ),
    Step(
        "streams",
        "Cancelled streams",
        "Do cancelled streams leave memory behind?",
        quick=("--quick",),
        standard=(),
        plots=("streams",),
    ),
    Step(
        "footprint",
        "Footprint",
        "What does the daemon with the embedded engine hold in memory?",
        quick=("--quick",),
        standard=("--quick",),
    ),
    Step(
        "soak",
        "Soak",
        "Is everything level under a mixed load with faults, and is no error but those provoked?",
        quick=("--seconds", "60"),
        standard=(),
        asked_only=True,
        plots=("soak",),
    ),
)
NAMES = tuple(step.name for step in STEPS)
