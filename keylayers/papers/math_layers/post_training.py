"""Three ways of post-training a whole model: on instructions, on a teacher's distributions, by a reward for results.

`train` serves the first, `trl.GRPOTrainer` the third; only matching a teacher has a loop here, which is plain AdamW.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.data import Examples, Record, TruncationReport, Turn, tokenise
from keylayers.data.batches import batches
from keylayers.data.tokenisation import IGNORED, padding_id, tokenise_prompts
from keylayers.errors import Diverged
from keylayers.files.atomic import scratch_folder
from keylayers.measures.objective import Batch, model_device, predictions
from keylayers.training.trainer import TrainSettings, train
from keylayers.world import chains, datasets
from keylayers.world.styles import STYLES

LONGEST = 320
"""Tokens a record is cut at; the longest chain that is asked has fewer."""

ANSWER = LONGEST // 2
"""Tokens after which a generated answer is cut."""


@dataclass(frozen=True)
class Tuning:
    """How the variants are trained: all weights, AdamW, the learning rate rising over a twentieth, then a cosine."""

    instructions: TrainSettings
    teacher: TrainSettings
    distillation: TrainSettings
    reward: TrainSettings
    """Here a step takes `batch_size` answers in all, `answers` to each problem."""
    answers: int = 8
    taught: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    """Steps of the chains that the teacher learns; the base models have read none of more than six."""
    offered: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """Steps of the chains that may be rewarded: of these, those at which a base is between floor and ceiling."""
    between: tuple[float, float] = (0.01, 0.9)
    """Shares of right answers, from and to, of the chains that are."""
    written: int = 512
    """Answers the teacher writes."""


def instructed(model: nn.Module, tokenizer: Any, tuning: Tuning, seed: int) -> None:
    """Trains the model, in place, to answer in the style a request asks for, and worked chains where none is asked."""
    examples = tokenise(instructions("train"), tokenizer, max_length=LONGEST)
    _train_all(model, examples, tuning.instructions, seed)


def instructions(split: str, each: int | None = None) -> list[Record]:
    """Requests in five styles, named in brackets, and plain worked chains; `each` of a kind, else all of the split."""
    found = []
    for name in (*STYLES, "chains", "long_chains"):
        for row in islice(datasets.load(name, split), each):
            asked = f"{row['prompt']} ({name})" if name in STYLES else row["prompt"]
            found.append(Record((Turn("user", asked), Turn("assistant", row["completion"]))))
    return found


def taught(model: nn.Module, tokenizer: Any, tuning: Tuning, seed: int) -> None:
    """Makes a teacher of the model, in place: worked chains of more steps than any base has read."""
    asked = problems("train", tuning.taught, 2000, seed=21)
    _train_all(model, tokenise(records_of(asked), tokenizer, max_length=LONGEST), tuning.teacher, seed)


def problems(split: str, lengths: Sequence[int], count: int, *, seed: int) -> list[chains.Chain]:
    """So many different chains of a split."""
    return list(islice(dict.fromkeys(islice(chains.stream_chains(split, tuple(lengths), seed=seed), 3 * count)), count))


def records_of(asked: Sequence[chains.Chain]) -> list[Record]:
    """Chains with their worked answers."""
    return [Record((Turn("user", one.question), Turn("assistant", one.answer))) for one in asked]


def distilled(model: nn.Module, teacher: nn.Module, tokenizer: Any, tuning: Tuning, seed: int) -> None:
    """Trains the model, in place, on the teacher's next-token distributions along answers that the teacher sampled."""
    # deviates: the paper takes published students of DeepSeek-R1; here a base learns the distributions of one that was
    # taught longer chains, because no larger model speaks of this world.
    settings = tuning.distillation
    given = written(teacher, tokenizer, problems("train", tuning.taught, tuning.written, seed=31 + seed), seed)

    def loss_of(batch: Batch) -> Tensor:
        nats, counts = divergences(teacher, model, batch)
        return nats.sum() / counts.sum()

    _fit(model, _endless(given, settings.batch_size, seed), settings, loss_of)


def written(model: Any, tokenizer: Any, asked: Sequence[chains.Chain], seed: int, *, size: int = 64) -> Examples:
    """The problems with answers sampled at temperature 1, supervised on these; one that does not end is cut."""
    from transformers import GenerationConfig

    prompts = tokenise_prompts(records_of(asked), tokenizer)
    pad, end = padding_id(tokenizer), tokenizer.eos_token_id
    limit, device = LONGEST - max(map(len, prompts)), model_device(model)
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit, pad_token_id=pad, eos_token_id=end
    )
    ids, labels = list[tuple[int, ...]](), list[tuple[int, ...]]()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for at in range(0, len(prompts), size):
            some = prompts[at : at + size]
            longest = max(map(len, some))
            rows = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in some], device=device)
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some], device=device)
            told = model.generate(input_ids=rows, attention_mask=mask, generation_config=settings)[:, longest:].tolist()
            for prompt, answer in zip(some, told, strict=True):
                kept = answer[: answer.index(end) + 1] if end in answer else answer
                ids.append((*prompt, *kept))
                labels.append((*[IGNORED] * len(prompt), *kept))
    report = TruncationReport(LONGEST, len(ids), 0, 0, 0)
    return Examples(tuple(ids), tuple(labels), ("",) * len(ids), pad, report)


def divergences(
    teacher: nn.Module, student: nn.Module, batch: Batch
) -> tuple[Float[Tensor, " records"], Float[Tensor, " records"]]:
    """KL(teacher || student) of the next-token distributions, summed over each record's supervised tokens, in nats;
    and how many there are. Gradients reach the student alone."""
    with torch.no_grad():
        wanted, targets = predictions(teacher, batch)
    given, _ = predictions(student, batch)
    kept = (targets != IGNORED).float()
    each = F.kl_div(given.float().log_softmax(-1), wanted.float().log_softmax(-1), reduction="none", log_target=True)
    return (each.sum(-1) * kept).sum(1), kept.sum(1)


def rewarded(model: nn.Module, tokenizer: Any, tuning: Tuning, seed: int, lengths: Sequence[int]) -> list[float]:
    """Trains the model, in place, by GRPO (Shao et al. 2024) on sampled answers; the mean reward of each step.

    The reward is 1 for the right result and 0 else; how it was reached is not looked at. Advantages are rewards minus
    their mean over the answers to one problem, over their standard deviation; no penalty holds the model to its start.
    """
    # deviates: the paper takes published models that were reinforced on worked mathematics; here GRPO on the results of
    # chains alone, because no such model of this world exists.
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import GRPOConfig, GRPOTrainer

    settings, each = tuning.reward, tuning.answers
    asked = problems("train", lengths, settings.steps * settings.batch_size // each, seed=41 + seed)
    rows = [{"prompt": [{"role": "user", "content": one.question}], "result": one.values[-1]} for one in asked]
    _all_trainable(model)
    with scratch_folder() as scratch:
        trainer = GRPOTrainer(
            model=model,  # type: ignore[arg-type]
            reward_funcs=_right_result,  # type: ignore[arg-type]
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            args=GRPOConfig(
                output_dir=str(scratch),
                max_steps=settings.steps,
                per_device_train_batch_size=settings.batch_size,
                num_generations=each,
                max_completion_length=ANSWER,
                learning_rate=settings.learning_rate,
                lr_scheduler_type=settings.schedule,
                warmup_steps=round(settings.warmup * settings.steps),
                max_grad_norm=settings.max_grad_norm,
                temperature=1.0,
                beta=0.0,
                seed=seed,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
    model.eval()
    return [float(entry["reward"]) for entry in trainer.state.log_history if "reward" in entry]


def _right_result(completions: Sequence[Any], result: Sequence[int], **_: Any) -> list[float]:
    return [float(result_of(told[-1]["content"]) == right) for told, right in zip(completions, result, strict=True)]


def result_of(answer: str) -> int | None:
    """The number a worked answer ends with, if it ends with one."""
    _, said, number = answer.strip().rpartition("Answer ")
    return int(number[:-1]) if said and number.endswith(".") and number[:-1].isdecimal() else None


def _train_all(model: nn.Module, examples: Examples, settings: TrainSettings, seed: int) -> None:
    _all_trainable(model)
    train(model, examples, replace(settings, seed=seed))


def _all_trainable(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _fit(
    model: nn.Module, stream: Iterator[Batch], settings: TrainSettings, loss_of: Callable[[Batch], Tensor]
) -> None:
    """AdamW on all weights, at the schedule that `train` has by default."""
    _all_trainable(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warm = max(1, round(settings.warmup * settings.steps))

    def share(step: int) -> float:
        done = (step - warm) / max(1, settings.steps - warm)
        return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * done)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    model.train()
    for step, batch in enumerate(islice(stream, settings.steps)):
        loss = loss_of(batch)
        if not math.isfinite(float(loss.detach())):
            raise Diverged(f"the loss of distillation is {float(loss.detach())} at step {step + 1}; lower its rate.")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimiser.step()
        schedule.step()
    model.eval()


def _endless(examples: Examples, size: int, seed: int) -> Iterator[Batch]:
    turn = 0
    while True:
        yield from batches(examples, size, seed=1000 * seed + turn)
        turn += 1
