"""A prompt that does not fit is recognised in the words of every server, and nothing else is.

The wordings are those of public reports, with other figures: among others vllm#8306 and later, the
issues of sglang, text-generation-inference, abetlen/llama-cpp-python#462, lmstudio-bug-tracker#546,
google-gemini/gemini-cli#6678, cline#3120 (xAI), dify#32221 (Volcano Engine), MoonshotAI-Cookbook#18,
TensorRT-LLM#9277 and tensorrtllm_backend#141, sandbox-topically#4 (Cohere), and Roo-Code#248.
"""

from __future__ import annotations

from typing import Any

from quirk import Quirk, check, reply, table

from ruvd.core.errors import ContextTooLong, EngineRateLimited, EngineRejected, EngineUnavailable

BAD, LARGE, LIMITED, OOPS = (
    "400 Bad Request", "413 Too Large", "429 Too Many Requests", "500 Internal Server Error",
)  # fmt: skip


def too_long(name: str, message: str, status: str = BAD, **fields: Any) -> Quirk:
    """A row for an error object with this message."""
    response = reply({"error": {"message": message, **fields}}, status)
    return Quirk(name, response, error=ContextTooLong, words=message[:60])


def other(name: str, message: str, status: str = BAD, **fields: Any) -> Quirk:
    """A row for an error that trimming would not help."""
    errors = {BAD: EngineRejected, LARGE: EngineRejected, LIMITED: EngineRateLimited}
    error = errors.get(status, EngineUnavailable)
    response = reply({"error": {"message": message, **fields}}, status)
    return Quirk(name, response, error=error, words=message[:60], settings={"retries": 0})


@table(
    too_long("OpenAI: maximum context length", "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please reduce the length of the messages.", code="context_length_exceeded"),
    too_long("OpenAI: exceeds the context window", "Your input exceeds the context window of this model. Please adjust your input and try again."),
    too_long("OpenAI: input tokens", "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens."),
    too_long("OpenAI: only a code", "Too long.", code="context_length_exceeded"),
    too_long("OpenAI: larger than a minute's limit", "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 45000. The input or output tokens must be reduced in order to run successfully.", LIMITED, type="tokens", code="rate_limit_exceeded"),
    too_long("vLLM: requested", "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in the messages, 10000 in the completion). Please reduce the length of the messages or completion."),
    too_long("vLLM: input tokens", "This model's maximum context length is 2048 tokens. However, your request has 2500 input tokens. Please reduce the length of the input messages."),
    too_long("vLLM: max_tokens leaves no room", "'max_tokens' or 'max_completion_tokens' is too large: 4000. This model's maximum context length is 8192 tokens and your request has 5000 input tokens (4000 > 8192 - 5000)."),
    too_long("vLLM: the decoder prompt", "The decoder prompt (length 9000) is longer than the maximum model length of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens."),
    too_long("vLLM: less than nothing", "max_tokens must be at least 1, got -357."),
    too_long("vLLM: at the top level", "This model's maximum context length is 10 tokens.", OOPS),
    too_long("SGLang: requested", "Requested token count exceeds the model's maximum context length of 64000 tokens. You requested a total of 71897 tokens: 7897 tokens from the input messages and 64000 tokens for the completion."),
    too_long("SGLang: the input", "The input (516368 tokens) is longer than the model's context length (262144 tokens)."),
    too_long("SGLang: input length", "Input length (9000 tokens) exceeds the maximum allowed length (8191 tokens). Use a shorter input or enable --allow-auto-truncate."),
    too_long("TGI: the sum", "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 200 `max_new_tokens`", "422 Unprocessable"),
    too_long("TGI: the inputs", "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500", "422 Unprocessable"),
    too_long("llama-server: the request", "the request exceeds the available context size, try increasing it", type="exceed_context_size_error", n_prompt_tokens=900, n_ctx=512),
    too_long("llama-server: figures", "request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it"),
    too_long("llama-server: context size exceeded", "Context size has been exceeded.", OOPS, type="server_error"),
    too_long("llama-server: larger than the slot", "input is larger than the max context size. skipped", OOPS),
    too_long("llama-cpp-python", "Requested tokens (2285) exceed context window of 2048", OOPS),
    too_long("llama-cpp-python: with its code", "This model's maximum context length is 2048 tokens. However, you requested 2300 tokens (2200 in your prompt; 100 for the completion). Please reduce your prompt; or completion length.", code="context_length_exceeded"),
    too_long("Ollama", "the input length exceeds the context length"),
    too_long("Ollama: cloud", "prompt too long; exceeded max context length by 4 tokens"),
    too_long("LM Studio: keep", "Trying to keep the first 111490 tokens when context the overflows. However, the model is loaded with context length of only 32768 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter input"),
    too_long("LM Studio: greater", "The number of tokens to keep from the initial prompt is greater than the context length. Try to load the model with a larger context length, or provide a shorter input"),
    too_long("LM Studio: reached", "Reached context length of 4096 tokens with this model, but this model does not currently support mid-generation context overflow."),
    too_long("Groq: 413", "Request too large for model `m` in organization `org_1` service tier `on_demand` on tokens per minute (TPM): Limit 6000, Requested 12042, please reduce your message size and try again.", LARGE, type="tokens", code="rate_limit_exceeded"),
    too_long("Groq: reduce", "Please reduce the length of the messages or completion.", code="context_length_exceeded", type="invalid_request_error"),
    too_long("Gemini", "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).", code=400),
    too_long("Gemini: without the count", "The input token count exceeds the maximum number of tokens allowed (1048576)."),
    too_long("Vertex: unable to submit", "Unable to submit request because the input token count is 140000 but model only supports up to 32768. Reduce the input token count and try again."),
    too_long("Bedrock: input is too long", "Input is too long for requested model."),
    too_long("Bedrock: too many input tokens", "The model returned the following errors: Too many input tokens. Max input tokens: 8192, request input token count: 9100"),
    too_long("Bedrock: validation", "ValidationException: This model's maximum prompt is 4096 tokens, and your prompt has 5000 tokens"),
    too_long("Anthropic", "prompt is too long: 213462 tokens > 200000 maximum", type="invalid_request_error"),
    too_long("Anthropic: with the answer", "input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000, decrease input length or `max_tokens` and try again"),
    too_long("Anthropic: 413", "Request exceeds the maximum size", LARGE, type="request_too_large"),
    too_long("xAI", "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
    too_long("Fireworks", "The prompt is too long: 9000, model maximum context length: 8192"),
    too_long("Moonshot", "Invalid request: Your request exceeded model token limit: 8192 (requested: 9001)"),
    too_long("Moonshot: older", "model max length exceeded, max length:8192"),
    too_long("Zhipu: code 1261", "Prompt exceeds max length", code="1261"),
    too_long("Zhipu: in Chinese", "Prompt 超长", code="1261"),
    too_long("Volcano Engine", "Input length 203743 exceeds the maximum length 202752", code="InvalidParameter"),
    too_long("DashScope", "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]", code="invalid_parameter_error"),
    too_long("DashScope: in Chinese", "输入长度超过模型上限"),
    too_long("Cohere", "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000. Try using a shorter prompt."),
    too_long("Cohere: newer", "too many tokens: size limit exceeded by 11326 tokens. Try using shorter or fewer inputs, or setting prompt_truncation='AUTO'."),
    too_long("TensorRT-LLM: the sum", "The sum of prompt length (9351.0), query length (0) should not exceed max_num_tokens (8192)", OOPS),
    too_long("TensorRT-LLM: sequence", "Cannot process new request: Prompt length (5056) exceeds maximum sequence length (2048)"),
    too_long("TensorRT-LLM: default_max_tokens", "`default_max_tokens` (-904) should be greater than 0, `default_max_tokens` = max_seq_len (4096) - prompt length (5000)"),
    too_long("OpenRouter", "This endpoint's maximum context length is 65536 tokens. However, you requested about 90000 tokens (82000 of text input, 8000 in the output). Please reduce the length of either one."),
    too_long("Mistral", "Prompt contains 40012 tokens and 0 draft tokens, too large for model with 32768 maximum context length", type="invalid_request_prompt"),
    too_long("Together", "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8000 `inputs` tokens and 512 `max_new_tokens`", "422 Unprocessable"),
    too_long("GitHub Copilot", "prompt token count of 130000 exceeds the limit of 128000", code="model_max_prompt_tokens_exceeded"),
    too_long("GitHub Models", "Request body too large for gpt-4o model. Max size: 8000 tokens.", LARGE, code="tokens_limit_reached"),
    too_long("MiniMax", "invalid params, context window exceeds limit (2013)"),
    too_long("DeepSeek", "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens (66000 in the messages, 4000 in the completion). Please reduce the length of the messages or completion.", type="invalid_request_error"),
    too_long("TabbyAPI", "Prompt length 5000 is greater than max_seq_len 4096"),
    too_long("LiteLLM", "litellm.ContextWindowExceededError: litellm.BadRequestError: it is too much", type="ContextWindowExceededError"),
    too_long("Cerebras", "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192"),
    too_long("Databricks", "Input length (9000 tokens) exceeds the model's limit"),
    too_long("a server: exceeds and figures", "n_tokens 9000 exceeds n_ctx 8192"),
    too_long("a server: figures and no known words", "got 9000 prompt tokens, this deployment has room for 8192"),
    too_long("a server: figures with commas", "prompt: 9,000 tokens, capacity: 8,192 tokens"),
    too_long("a server: figures and a sign", "tokens 9000 > 8192"),
    Quirk("nginx: 413 and a page", reply(b"<html>413 Request Entity Too Large</html>", LARGE, "text/html"), error=ContextTooLong, words="413"),
    Quirk("FastAPI: detail", reply({"detail": "Prompt length 5000 exceeds 4096"}, BAD), error=ContextTooLong, words="Prompt length"),
    Quirk("vLLM: an error object at the top level", reply({"object": "error", "message": "This model's maximum context length is 10 tokens.", "type": "BadRequestError", "code": 400}, BAD), error=ContextTooLong, words="10 tokens"),
    Quirk("LM Studio: a text", reply({"error": "Trying to keep the first 9000 tokens when context the overflows."}, BAD), error=ContextTooLong, words="9000"),
)  # fmt: skip
async def test_a_prompt_that_does_not_fit_is_recognised(quirk: Quirk) -> None:
    await check(quirk)


@table(
    other("OpenAI: tokens per minute", "Rate limit reached for gpt-4 in organization org-1 on tokens per min (TPM): Limit 10000, Used 9000, Requested 2000. Please try again in 6s.", LIMITED, type="tokens", code="rate_limit_exceeded"),
    other("OpenAI: requests per day", "Rate limit reached for requests per day (RPD): Limit 200, Used 200, Requested 1.", LIMITED),
    other("Anthropic: input tokens per minute", "This request would exceed your organization's rate limit of 30,000 input tokens per minute.", LIMITED),
    other("Gemini: a quota of input tokens", "You exceeded your current quota. Quota exceeded for metric: generate_content_free_tier_input_token_count, limit: 250000", LIMITED),
    other("DashScope: token limit of a minute", "Requests token limit exceeded: 200000 tokens per minute", LIMITED),
    other("OpenAI: max_tokens", "max_tokens is too large: 100000. This model supports at most 16384 completion tokens, whereas you provided 100000."),
    other("Anthropic: max_tokens", "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens for claude"),
    other("Bedrock: max_tokens", "The maximum tokens you requested exceeds the model limit of 4096. Try again with a maximum tokens value that is lower than 4096."),
    other("vLLM: max_tokens is 0", "max_tokens must be at least 1, got 0."),
    other("vLLM: logit_bias", "token_id 200000 in logit_bias exceeds the vocab size 128000"),
    other("OpenAI: temperature", "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 5 instead."),
    other("OpenAI: too many tools", "Invalid 'tools': array too long. Expected an array with maximum length 128, but got 200 instead."),
    other("OpenAI: stop", "Invalid 'stop': array too long. Expected an array with maximum length 4, but got 7 instead."),
    other("a server: images", "At most 16 images may be provided in one prompt, got 32"),
    other("a server: no such model", "The model `m` does not exist."),
    other("a server: a template", "Conversation roles must alternate user/assistant"),
    other("a server: out of memory", "CUDA out of memory. Tried to allocate 20 GiB, 80 GiB in total", OOPS),
    other("a server: top_k", "top_k must be less than 100, got 1000"),
    other("a server: 413 for something else", "too much", LARGE),
)  # fmt: skip
async def test_what_trimming_would_not_help_is_no_overflow(quirk: Quirk) -> None:
    await check(quirk)
