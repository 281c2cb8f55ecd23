"""The official openai client against a running server: openai_client.py URL MODEL.

Everything is called as its documentation shows it, with nothing but base_url changed.
"""

import asyncio
import sys

import openai

URL, MODEL = sys.argv[1], sys.argv[2]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
client = openai.OpenAI(base_url=URL + "/v1", api_key="any", max_retries=0)


def models():
    listed = client.models.list()
    assert [model.id for model in listed] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def completions():
    answer = client.completions.create(
        model=MODEL, prompt=["one", "two"], n=2, max_tokens=5, logprobs=2, echo=True, seed=1,
        stop=["\n\n\n"], presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"7": -100},
        user="tester", temperature=0.7, top_p=0.9,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("one") and answer.choices[3].text.startswith("two")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset)
    best = client.completions.create(model=MODEL, prompt="one", best_of=3, n=1, max_tokens=3)
    assert len(best.choices) == 1


def embeddings():
    answer = client.embeddings.create(model=MODEL, input=["one", "two"])  # asks for base64
    assert [item.index for item in answer.data] == [0, 1] and answer.usage.prompt_tokens > 1
    plain = client.embeddings.create(model=MODEL, input="two", encoding_format="float")
    assert all(abs(a - b) < 1e-6 for a, b in zip(answer.data[1].embedding, plain.data[0].embedding))
    assert abs(sum(x * x for x in plain.data[0].embedding) - 1) < 1e-4
    few = client.embeddings.create(model=MODEL, input="two", dimensions=3)
    assert len(few.data[0].embedding) == 3


def completion_stream():
    arguments = dict(
        model=MODEL, prompt="stream", max_tokens=9, seed=3, extra_body={"ignore_eos": True}
    )
    whole = client.completions.create(**arguments)
    chunks = list(
        client.completions.create(stream=True, stream_options={"include_usage": True}, **arguments)
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 9
    assert chunks[-2].choices[0].finish_reason == "length"


def chat():
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=6, logprobs=True, top_logprobs=3,
        n=2, seed=5, extra_body={"expert_usage": True, "router": {"threshold": 0.5}},
    )
    assert len(answer.choices) == 2
    message = answer.choices[0].message
    assert message.role == "assistant" and isinstance(message.content, str)
    token = answer.choices[0].logprobs.content[0]
    assert len(token.top_logprobs) == 3 and token.bytes and token.logprob <= 0
    assert answer.model_extra["expert_usage"]["object"] == "experts.usage"
    assert abs(answer.model_extra["router"]["threshold"] - 0.5) < 1e-6


def chat_stream():
    arguments = dict(model=MODEL, messages=MESSAGES, max_tokens=6, seed=6)
    whole = client.chat.completions.create(**arguments).choices[0]
    chunks = list(client.chat.completions.create(stream=True, **arguments))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    with client.chat.completions.stream(**arguments) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(deltas) == text


def left_streams():
    for _ in range(5):
        stream = client.completions.create(
            model=MODEL, prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()


def errors():
    def raises(kind, status, param, **arguments):
        try:
            client.completions.create(**{"model": MODEL, "prompt": "x", **arguments})
        except kind as error:
            assert error.status_code == status and error.param == param, error
            assert error.request_id
        else:
            raise AssertionError(f"{arguments} was accepted")

    raises(openai.BadRequestError, 400, "temperature", temperature=3)
    raises(openai.BadRequestError, 400, "prompt", prompt=[])
    raises(openai.BadRequestError, 400, "prompt", prompt=[1] * 1000)
    raises(openai.BadRequestError, 400, "router.type", extra_body={"router": {"type": "x"}})
    raises(openai.NotFoundError, 404, "model", model="gpt-5")
    try:
        client.chat.completions.create(model=MODEL, messages=[])
    except openai.BadRequestError as error:
        assert error.param == "messages"
    else:
        raise AssertionError("empty messages were accepted")


async def asynchronous():
    async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="any", max_retries=0) as many:
        answers = await asyncio.gather(
            *(many.completions.create(model=MODEL, prompt=f"{i}", max_tokens=4) for i in range(20))
        )
        assert all(answer.choices[0].finish_reason in ("stop", "length") for answer in answers)
        stream = await many.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=4, stream=True
        )
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason


for check in (models, completions, embeddings, completion_stream, chat, chat_stream, left_streams, errors):
    check()
asyncio.run(asynchronous())
print("openai", openai.__version__, "client: all checks passed")
