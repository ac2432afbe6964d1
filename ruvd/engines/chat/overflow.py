"""Whether a server's error says that the prompt does not fit the model's context.

Every server has words of its own for it, and a session whose prompt does not fit goes on only if it
is recognised: then it is trimmed once. `tests/quirks/test_context_overflow.py` has the wordings of
each server. Where no wording fits, a size that exceeds another one beside the words context, tokens
or prompt is a hint. Limits of a rate (tokens per minute) and of the answer alone (`max_tokens`) are
something else, and trimming would not help.
"""

import re
from http import HTTPStatus

from ruvd.core.errors import ContextTooLong
from ruvd.engines.chat.error_body import ErrorBody

# An error's code or type.
_CODE = re.compile(
    r"context.?(length|size|window|limit)\w*(exceed|error)|exceed\w*context|context.?overflow"
    r"|(prompt|input|tokens?|request)\w*too.?(long|large|many)|tokens?.?limit.?(reached|exceeded)"
    r"|prompt\w*(tokens?|length)\w*exceed|^1261$",
    re.IGNORECASE,
)
_NUMBER = r"(\d[\d,_]*)(?:\.\d+)?"
_COMPARES = (
    r"(?:exceed|too (?:long|large|big|many|small)|long(?:er)? than|larger|greater|more than"
    r"|overflow|over the|maximum|reduce|shorten|not enough|only|beyond|out of|(?:not|n't) fit|full"
    r"|must be|at most|up to|limit|less than|below|above|>)"
)
_WORDINGS = re.compile(
    # A context or a prompt that is compared with a size.
    rf"context.{{0,3}}(?:length|window|size|limit|capacity).*{_COMPARES}"
    rf"|{_COMPARES}.*context.{{0,3}}(?:length|window|size|limit|capacity)"
    r"|maximum (?:model|prompt|input|sequence|token) length"
    r"|max(?:imum)?[_ ](?:prompt|input|seq(?:uence)?|model)[_ ](?:len|length|tokens|size)\b"
    r"|(?:model|max) (?:token limit|max length|max len)"
    r"|context.{0,5}overflow|model max length|prompt exceeds max|prompt token count"
    # Something that is too long.
    r"|(?:prompt|inputs?|conversation|messages?|sequence|history|query|chat)(?![\w\[]).{0,50}"
    r"\btoo (?:long|large|big)"
    r"|messages\[\d+\]\.content.{0,50}\btoo long"
    r"|(?:prompt|input|sequence|conversation)s?(?![\w\[]).{0,40}"
    r"\b(?:exceed\w*|longer than|larger than|greater than).{0,30}(?:max|limit|allow|length|\d)"
    r"|exceed\w* .{0,20}(?:max|limit).{0,20}tokens"
    r"|too (?:long|large|big) (?:\w+ ){0,2}(?:prompt|input|request|message|conversation)"
    r"|too many (?:input |prompt |total )?tokens"
    r"|(?:request|body|entity|payload|content) (?:is )?too large"
    # A size of tokens that exceeds another.
    r"|(?:input|prompt|request(?:ed)?|message)s?\b.{0,60}\b(?:tokens?|length)\b.{0,60}"
    r"\b(?:exceed|greater than|longer than|larger than|more than|over|above|beyond)"
    r"|tokens?\b.{0,80}\bexceed\w*.{0,40}\b(?:maximum|limit|allowed|capacity)"
    r"|exceed\w*.{0,60}\b(?:token limit|input limit|prompt limit|maximum input|input tokens)"
    r"|range of input length"
    # vLLM, when the prompt leaves less than nothing for the answer.
    r"|max_tokens must be at least 1, got -\d"
    # TGI and Together.
    r"|`inputs` (?:must|tokens)|`max_new_tokens` must be <="
    r"|reduce (?:the )?(?:length|size) of (?:the |your )?(?:messages?|prompt|input)"
    r"|(?:reduce|shorten) (?:the |your )?(?:prompt|input|messages?|conversation|history)"
    # Chinese: context, input or length that exceeds or is too long.
    r"|(?:上下文|输入|提示|长度|token|prompt).{0,20}(?:超过|超出|超长|过长|超限)"
    r"|(?:超过|超出).{0,20}(?:上下文|输入|提示|长度|token|prompt)",
    re.IGNORECASE | re.DOTALL,
)
_ABOUT_PROMPT = re.compile(
    r"context|prompt(?!_cache)|input|message|n_ctx|seq_?len|sequence", re.IGNORECASE
)
_ABOUT_ANSWER = re.compile(
    r"max\w*?_?(?:completion|new|output)?_?tokens|maxOutputTokens|maximum tokens you requested"
    r"|(?:completion|output|generated|response) tokens",
    re.IGNORECASE,
)
_ABOUT_RATE = re.compile(
    r"\b[TR]P[MDSH]\b|\bper[ _-]?(?:min|day|hour|sec)|rate.?limit|quota|concurren|每分钟|频率|限流",
    re.IGNORECASE,
)
_ABOUT_OTHERS = re.compile(
    r"vocab|token[ _-]?ids?\b|logit|logprob|\bstop\b|temperature|top_?[kp]|images?\b|audio|video"
    r"|\bfiles?\b|embedding|\btools?\b|functions?\b|schema|budget|thinking|penalty|\bseed\b|auth|expire|cache_?key",
    re.IGNORECASE,
)
_TOO_LARGE_AT_ONCE = re.compile(r"request (?:is )?too large", re.IGNORECASE)
# The size of the context in the servers' words, and that of the prompt: alone if they give it.
_LIMIT = re.compile(
    rf"maximum context length(?: is| of|:)? \(?{_NUMBER}"
    rf"|context length \({_NUMBER} tokens\)"
    rf"|context (?:length|window|size)(?: of)?(?: only)? \(?{_NUMBER}"
    rf"|maximum (?:model|prompt|input) length (?:of|is|\() ?{_NUMBER}"
    rf"|`max_new_tokens` must be <= {_NUMBER}"
    rf"|`inputs` must have less than {_NUMBER}"
    rf"|with {_NUMBER} maximum context length"
    rf"|max(?:imum)? length:? ?{_NUMBER}"
    rf"|(?:tokens allowed|maximum length|token limit:?|limit of|tokens? >) \(?{_NUMBER}"
    rf"|Limit {_NUMBER}, Requested"
    rf"|should be \[\d+, {_NUMBER}\]",
    re.IGNORECASE,
)
_PROMPT = re.compile(
    rf"\({_NUMBER} in (?:the messages|your prompt)"
    rf"|{_NUMBER} tokens from the input messages"
    rf"|has {_NUMBER} input tokens"
    rf"|The input \({_NUMBER} tokens\)"
    rf"|prompt \(length {_NUMBER}\)"
    rf"|resulted in {_NUMBER} tokens"
    rf"|Given: {_NUMBER}"
    rf"|Prompt contains {_NUMBER} tokens"
    rf"|Input length \(?{_NUMBER}"
    rf"|Prompt length \(?{_NUMBER}"
    rf"|token count (?:of )?\(?{_NUMBER}"
    rf"|request contains {_NUMBER} tokens"
    rf"|Requested tokens \({_NUMBER}"
    rf"|Limit \d+, Requested {_NUMBER}"
    rf"|first {_NUMBER} tokens"
    rf"|too long: {_NUMBER}",
    re.IGNORECASE,
)
_REQUESTED = re.compile(rf"you requested(?: a total of| about)? {_NUMBER} tokens", re.IGNORECASE)
_SIZE = re.compile(rf"(?<![\w.]){_NUMBER}")
_BESIDE = re.compile(r"context|token|prompt|n_ctx|seq_?len", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]\s")
_STATUS = re.compile(r"(?:status|code|http)\W{0,3}\d{3}\b", re.IGNORECASE)
# A server's text may be long, and no wording is.
_MAX_SEARCHED = 1000
# Smaller numbers are counts of something else.
_LEAST_SIZE = 16
_HINTED_STATUSES = {None, HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, 500}


def context_overflow(body: ErrorBody, status: int | None) -> ContextTooLong | None:
    """Returns the error for a prompt that does not fit, or None if the body says something else."""
    message = body.message[:_MAX_SEARCHED]
    if not _is_overflow(body, status):
        return None
    prompt = _PROMPT.search(message) or _REQUESTED.search(message)
    sizes = (
        body.prompt_tokens or _figure(prompt),
        body.context_tokens or _figure(_LIMIT.search(message)),
    )
    if None in sizes and (hint := _hint(message)):
        sizes = sizes[0] or hint[0], sizes[1] or hint[1]
    return ContextTooLong(
        body.message,
        prompt_tokens=sizes[0],
        limit_tokens=sizes[1],
    )


def _is_overflow(body: ErrorBody, status: int | None) -> bool:
    message = body.message[:_MAX_SEARCHED]
    if _ABOUT_RATE.search(f"{message} {body.code} {body.type}"):
        # A request that is larger than the limit of a minute never fits (Groq, OpenAI).
        return bool(_TOO_LARGE_AT_ONCE.search(message))
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and not message:
        return True
    if _CODE.search(body.code) or _CODE.search(body.type):
        return True
    about_prompt = _ABOUT_PROMPT.search(message)
    if not about_prompt and (_ABOUT_ANSWER.search(message) or _ABOUT_OTHERS.search(message)):
        return bool(re.search(r"max_tokens must be at least 1, got -\d", message))
    if _WORDINGS.search(message):
        return True
    return status in _HINTED_STATUSES and _hint(message) is not None


def _hint(message: str) -> tuple[int, int] | None:
    """Returns the larger and the smaller of two sizes in one sentence with a word for a prompt.

    Returns None if no sentence has exactly two.
    """
    if _ABOUT_OTHERS.search(message):
        return None
    for sentence in _SENTENCE_END.split(_STATUS.sub("", message)):
        sizes = {_integer(match[1]) for match in _SIZE.finditer(sentence)}
        sizes = {size for size in sizes if size >= _LEAST_SIZE}
        if len(sizes) == 2 and _BESIDE.search(sentence):
            return max(sizes), min(sizes)
    return None


def _figure(match: re.Match[str] | None) -> int | None:
    return None if match is None else _integer(match[match.lastindex or 0])


def _integer(digits: str) -> int:
    return int(re.sub(r"\D", "", digits)[:15])
