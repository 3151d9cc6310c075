"""A reward from a language model that judges answers, behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp and others).

    vllm serve Qwen/Qwen2.5-7B-Instruct --port 8001
    JUDGE_URL=http://127.0.0.1:8001/v1 ral train recipe.yaml

In the recipe, with the file's path from the folder in which the command runs:

    reward_funcs: ["llm_judge.py:judge", format]
    reward_weights: [0.9, 0.1]

All completions of a rollout batch are judged at the same time, `JUDGE_REQUESTS` of them at once. Replies go to `samples.jsonl`.
"""

import asyncio
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError
from urllib.request import Request, urlopen

URL = os.environ.get("JUDGE_URL", "http://127.0.0.1:8001/v1")
MODEL = os.environ.get("JUDGE_MODEL", "default")
KEY = os.environ.get("JUDGE_KEY", "none")  # from the environment: a recipe is copied into every checkpoint
ATTEMPTS = 3

ASK = """Question: {question}
Correct answer: {solution}
Answer to judge: {answer}

Is the answer correct? Reply with a number between 0 (wrong) and 10 (correct), and nothing else."""

_threads = ThreadPoolExecutor(int(os.environ.get("JUDGE_REQUESTS", "32")))


async def judge(prompts, completions, *, solution, log_extra, log_metric, **columns):
    """The judge's mark, from 0 to 1; None (another reward decides) where its reply is no mark."""
    asked = zip(map(words, prompts), map(words, completions), solution, strict=True)
    ask = asyncio.get_running_loop().run_in_executor
    replies = await asyncio.gather(
        *(
            ask(_threads, reply, ASK.format(question=question, answer=answer_of(said), solution=right))
            for question, said, right in asked
        )
    )
    marks = [mark(text) for text in replies]
    log_extra("judge", replies)
    log_metric("judge_unreadable", sum(one is None for one in marks) / len(marks))
    return marks


def reply(question):
    body = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": question}]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = Request(f"{URL}/chat/completions", json.dumps(body).encode(), headers)
    for attempt in range(ATTEMPTS):
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)["choices"][0]["message"]["content"]
        except URLError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(2**attempt)


def words(turns):
    """A prompt or a completion as text; for a conversational prompt both are messages."""
    if isinstance(turns, str):
        return turns
    parts = [{"text": turn["content"]} if isinstance(turn["content"], str) else turn["content"] for turn in turns]
    flat = [part for turn in parts for part in (turn if isinstance(turn, list) else [turn])]
    return "\n".join(part["text"] for part in flat if "text" in part)


def answer_of(completion):
    found = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return found[-1].strip() if found else completion


def mark(text):
    found = re.fullmatch(r"\D*(\d+(?:\.\d+)?)(?:\s*/\s*10)?\D*", text)
    return None if found is None else min(float(found[1]), 10) / 10
