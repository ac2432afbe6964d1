"""The messages of `bench/multi_turn.py`: the same in every run, with a subject per conversation.

They are about everyday repairs, so that no private data is needed. Two conversations differ in
their subject, which comes early in each message. So two sessions share nothing but the system
prompt that a cache could reuse.
"""

from __future__ import annotations

import random

SYSTEM_PROMPT = """\
You are the evening help line of the Repair Hall, a place where people bring what is broken and \
mend it themselves with the hall's tools. You answer as an experienced mechanic would at the next \
bench: in two or three plain sentences, with the one thing to check first and the reason for it. \
You name the unit with every figure, you say when a guess is a guess, and you never advise to \
work on anything that is under mains voltage, under pressure or under load. When a part has to be \
replaced you say how to tell the right one from a similar one. You remember what has been told \
earlier in the conversation and do not ask for it again; if something contradicts it, you point \
that out kindly. The hall has hand tools, two multimeters, a bench vice, a small lathe, a drill \
press and a torque wrench up to 100 newton metres, and it closes at ten. Anything that needs \
welding goes to Ines, who is there on Thursdays. Questions about prices go to the desk."""

SUBJECTS = (
    "the old bicycle pump", "my grandfather's wall clock", "a kitchen stand mixer",
    "the garden water butt", "a folding camp chair", "the sewing machine", "a paraffin lamp",
    "the pushchair's front wheel", "a hand coffee grinder", "the attic window latch",
    "a cast iron bench vice", "the rowing boat's winch", "a record player", "the barn door rail",
    "a slide projector", "the kick scooter",
)  # fmt: skip

_OPENINGS = (
    (
        "It has served us for about nine years, most of them in a shed that is damp in winter, "
        "and nobody has taken it apart as far as I know."
    ),
    (
        "It came from a neighbour who was moving out, without any papers, and the name plate on "
        "the back has been painted over at least twice."
    ),
    (
        "We use it nearly every week, and it used to run so well that I never looked inside "
        "before this month, when the trouble began."
    ),
)
_TROUBLES = (
    (
        "First there was a dull knock each time it was put to work, then a squeak that went away "
        "with a drop of oil, and since Sunday it sticks halfway and has to be helped by hand. I "
        "have cleaned what can be reached from outside with a brush and a rag, and I have noticed "
        "a thin bright line on one side, as if two parts rubbed there that should not."
    ),
    (
        "At the beginning it only slipped when it was cold, later at any time, and now it lets go "
        "as soon as there is some weight on it. I have tightened the two screws that I can see, "
        "which helped for a day, and I have found a little grey dust below it, fine as flour, on "
        "the side that faces away from the handle."
    ),
)
_QUESTIONS = (
    "This is about {it}. What would you look at first, and which tool should I bring?",
    "Back to {it}: I found a worn bush, 0.4 mm too wide. Is that enough to explain it?",
    "With {it}, could heat or damp alone have caused this, or does something have to be worn?",
    "I have {it} open now and see a spring that has gone flat. How do I measure a new one?",
    "On {it} one screw is seized. How do I free it without spoiling the thread around it?",
    "Which grease do I put into {it}, and how would I notice that it was the wrong kind?",
    "A friend says that {it} only needs a stronger washer. What is wrong with that idea?",
    "For {it}, how tight should the main bolt be, and what happens if I overdo it by half?",
    "After an hour of work {it} is quieter but still pulls to the left. What does that tell?",
    "Could I make the missing part of {it} on the lathe, and from which metal would you turn it?",
    "What can I test on {it} before I put the cover back, so that I open it only once?",
    "I measured {it} twice and got 11.8 and 12.3 mm. Which of the two do you trust, and why?",
    "Suppose that {it} fails again next winter. Which part would you suspect before any other?",
    "How do I mark the pieces of {it}, so that they go back in the same order and direction?",
    "There is some play left in {it}. How much of it is healthy, and how much is too much?",
    "Is it worth to paint {it} now, or should the bare metal be treated in some other way?",
    "My daughter wants to help with {it}. Which step is safe for her, and which is not?",
    "How often should {it} be looked after from now on, and what exactly is done each time?",
    "If I lent {it} to a neighbour, what would you write on the note that goes along with it?",
    "Please sum up what we found on {it}, in the order in which you would do it again.",
)
_WHO = ("The fitter", "An apprentice", "The owner", "Whoever mended it last", "The workshop book")
_DID = (
    "recommends", "warns against", "once measured", "drew a sketch of", "asks about", "swears by",
)  # fmt: skip
_WHAT = (
    "a brass bush with 2 mm of wall", "the seized axle", "a longer lever", "two thin shims",
    "the bent bracket", "a left-hand thread", "felt instead of rubber", "the hollow rivet",
)  # fmt: skip
_WHEN = (
    "when the frame is cold", "after the second test", "before the cover goes on",
    "if the load is above 40 kg", "as soon as it squeaks", "while the oil is still warm",
)  # fmt: skip


def question(subject: int, turn: int) -> str:
    """Returns the user's message in a turn (0 to 19) of a subject: about 30 tokens."""
    return _QUESTIONS[turn].format(it=SUBJECTS[subject % len(SUBJECTS)])


def opening_message(subject: int) -> str:
    """Returns a first message that describes the trouble: about 170 tokens."""
    it = SUBJECTS[subject % len(SUBJECTS)]
    description = f"{_OPENINGS[subject % len(_OPENINGS)]} {_TROUBLES[subject % len(_TROUBLES)]}"
    return f"I have come because of {it}. {description} {question(subject, 0)}"


def user_messages(subject: int, turns: int, *, long_opening: bool = False) -> list[str]:
    """Returns the user's messages of a conversation, the first one long or short."""
    first = opening_message(subject) if long_opening else question(subject, 0)
    return [first, *(question(subject, turn) for turn in range(1, turns))][:turns]


def earlier_exchanges(subject: int, exchanges: int, sentences: int = 11) -> list[tuple[str, str]]:
    """Returns exchanges for an imported history: question and answer, about 240 tokens each."""
    draw = random.Random(subject)
    it = SUBJECTS[subject % len(SUBJECTS)]

    def answer(number: int) -> str:
        text = (
            f"{draw.choice(_WHO)} {draw.choice(_DID)} {draw.choice(_WHAT)} {draw.choice(_WHEN)}."
            for _ in range(sentences)
        )
        return f"For {it}, point {number + 1}. {' '.join(text)}"

    return [(question(subject, number), answer(number)) for number in range(exchanges)]
