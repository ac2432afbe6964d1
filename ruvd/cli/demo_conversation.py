"""The conversation of `ruvd demo`: a customer's questions, each of which needs those before."""

SYSTEM_PROMPT = """\
You are the support assistant of Fernhill Bikes, a small company that builds and sells electric \
cargo bikes from a workshop with nine people. You answer customers in a friendly, plain and \
precise way, in two or three short sentences, and you never invent prices, dates or stock. \
Orders have numbers that begin with FC. Standard delivery takes six working days and is free \
above 500 euros; express delivery takes two working days and costs 29 euros. Bikes can be \
returned within 30 days if they have been ridden less than 50 kilometres, spare parts within 60 \
days if unopened. Batteries have a warranty of three years, frames of ten, everything else of \
two. The workshop is open from Tuesday to Saturday, nine to six, and test rides need an \
appointment. When you are not sure, you say so and offer to pass the question on to Marit in the \
workshop, who answers within one working day. Refer to what the customer has told you already \
instead of asking again."""

_PARAGRAPHS = """
Hello, my name is Anna. Last Monday I ordered the Longtail L2 in green, order number FC-20817, with
standard delivery, and I have not heard anything since. Can you tell me when I should expect it at
the latest?

Thanks. If I changed that order to express delivery today, what would it cost me on top, and how
many days would I win compared with what you have just told me?

Then let us leave the delivery as it is. I forgot to add a second battery, though. My commute with
two children is about 35 kilometres each way. Do you think that I need one for this bike?

Suppose that I take the second battery and it loses half of its capacity after two and a half years
of that commute. Would your warranty still cover it, or only the first one that came with the bike?

Good to know. My wife is a good deal shorter than I am and would ride the same bike at weekends.
Can we both come for a test ride before it is delivered, and on which days would that be possible?

Saturday suits us. While we are there, could someone fit the child seats that I already own? They
are for the two children I mentioned, four and six years old, and each of them weighs less than 22
kilograms.

One more worry: if my wife finds out after two weeks that the bike is too big for her, can we still
send it back? We would have ridden perhaps three of those commutes by then.

Hm, so the kilometres would be the problem and not the days. What would you suggest that we do in
those first two weeks, so that we keep the right to return it and still find out?

That sounds sensible. And the second battery: if we leave it in its box until we are sure, how long
do we have to return that, and is it treated as a part or as a piece of the bike?

Could you please sum up what we have agreed so far in a short list: the delivery, the second
battery, the visit on Saturday with the child seats, and how we keep our right to return the bike?
"""

USER_TURNS = tuple(" ".join(turn.split()) for turn in _PARAGRAPHS.split("\n\n"))

LAST_TURN = (
    "I am back after a break. Before I come to the workshop I have to write it down: what was my "
    "order number again, and in which colour did I order the bike?"
)
