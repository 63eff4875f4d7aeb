"""What goes over the wire: OpenAI's requests and answers, as far as they are served.

A parameter that is not known is refused, not ignored: whoever asks for it would believe it was heeded. Those that
change nothing here (`user`, `metadata`, ...) are taken and put aside.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_STOPS = 4
MOST_CHOICES = 16
MOST_LOGPROBS = 20
MOST_INPUTS = 256
MOST_MESSAGES = 4096


def _whole(text: str) -> str:
    """Half of a surrogate pair is no text: nothing could be made of it, not even an answer that names it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the text has half of a surrogate pair in it (\\ud800 to \\udfff), which is no text") from None
    return text


def _whole_inside(value: Any) -> Any:
    _whole(json.dumps(value, ensure_ascii=False))
    return value


Text = Annotated[str, AfterValidator(_whole)]
Filled = Annotated[str, Field(min_length=1), AfterValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_whole)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """A request: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class ContentPart(Strict):
    """A part of a message's content; only text is served."""

    type: Literal["text"]
    text: Text


class FunctionCall(Strict):
    """A called function; the arguments are the text of a JSON object."""

    name: Filled
    arguments: Text


class ToolCall(Strict):
    """A call in an assistant's earlier turn."""

    id: Text = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Strict):
    """One turn. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    refusal: Text | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Strict):
    """`include_usage`: a last piece tells how many tokens were read and said."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(Strict):
    """What every request for text has."""

    model: Name
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Filled | Annotated[list[Filled], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[Number, Field(ge=-100, le=100)]] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextFormat(Strict):
    """The only form of answer that is served."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], AfterValidator(_whole_inside)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say different things; give one of them")
        return self

    @property
    def limit(self) -> int | None:
        """The longest reply, if the request says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Tokens = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(Sampled):
    """POST /v1/completions: how a text goes on."""

    prompt: (
        Filled
        | Tokens
        | Annotated[list[Filled], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of other than n is not served; ask for n and choose")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)


Inputs = Filled | Annotated[list[Filled], Field(min_length=1, max_length=MOST_INPUTS)]


class InputRequest(Strict):
    """POST /v1/classify and /v1/extract."""

    model: Name
    input: Inputs
    user: Text | None = None

    @property
    def texts(self) -> list[str]:
        """Every text."""
        return [self.input] if isinstance(self.input, str) else self.input


class LoadRequest(Strict):
    """POST /v1/load_lora_adapter. `lora_path` is the name of a run in the folder that the server allows."""

    lora_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    lora_path: Name | None = None


class UnloadRequest(Strict):
    """POST /v1/unload_lora_adapter."""

    lora_name: Name


# ---- answers


class Problem(BaseModel):
    """OpenAI's shape of an error's inside."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(BaseModel):
    """OpenAI's shape of an error."""

    error: Problem


class CachedTokens(BaseModel):
    """Of the prompt's tokens, those that were not computed again."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens that were read and said; a tuned model's own virtual tokens are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = CachedTokens()


class TopLogprob(BaseModel):
    """A token with its log-probability; `bytes` are None where the token stands for none."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token that was said, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    """One entry for every token that was said."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    """The same in the older form."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Said(BaseModel):
    """A reply, or in a stream what is new of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the replies."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None = None
    finish_reason: str


class ChatAnswer(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunkChoice(BaseModel):
    """What is new of one of the replies."""

    index: int
    delta: Said
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(BaseModel):
    """A piece of a stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    """How one of the texts goes on."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class CompletionAnswer(BaseModel):
    """The answer of /v1/completions, and a piece of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Labelled(BaseModel):
    """A text's label, or its labels where it may have several (those above one half), with all probabilities."""

    index: int
    label: str | None
    labels: list[str]
    probability: float | None
    probabilities: dict[str, float]


class ClassifyAnswer(BaseModel):
    """The answer of /v1/classify."""

    object: Literal["list"] = "list"
    model: str
    data: list[Labelled]


class FoundEntity(BaseModel):
    """An entity: the characters [start, end) of the text."""

    text: str
    type: str
    start: int
    end: int


class Extracted(BaseModel):
    """A text's entities."""

    index: int
    entities: list[FoundEntity]


class ExtractAnswer(BaseModel):
    """The answer of /v1/extract."""

    object: Literal["list"] = "list"
    model: str
    data: list[Extracted]


class ModelCard(BaseModel):
    """A model that can be asked. `parent` is the base of a tuned one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["heptune"] = "heptune"
    parent: str | None = None
    technique: str | None = None
    task: str | None = None
    max_model_len: int | None = None


class ModelList(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The answer of /health."""

    status: Literal["ok", "draining", "broken"]
