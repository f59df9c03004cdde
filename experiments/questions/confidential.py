"""What may be shown and kept of questions that their authors ask never to show, and of runs that answered them."""

from __future__ import annotations

import msgspec

from experiments.questions.question import Question
from shell_router.record import RunRecord

WITHHELD = "(withheld)"


def shown(question: Question) -> Question:
    """The question as plans, records and logs hold it: no data of its scorer's, of a confidential one no words."""
    if question.confidential:
        return Question(id=question.id, prompt=WITHHELD, answer=WITHHELD, confidential=True)
    return Question(id=question.id, prompt=question.prompt, answer=question.answer)


def without_words(record: RunRecord) -> RunRecord:
    """`record` without the question, the prompts and the answers: its times, counts and decisions."""

    def hidden(error: str | None) -> str | None:
        # Messages of servers may repeat what they were sent.
        return error and WITHHELD

    agents = tuple(
        msgspec.structs.replace(
            agent, text=WITHHELD, output_ids=(), prompt_ids=(), replay=None, error=hidden(agent.error)
        )
        for agent in record.agents
    )
    checks = tuple(msgspec.structs.replace(check, error=hidden(check.error)) for check in record.checks)
    return msgspec.structs.replace(record, question=WITHHELD, agents=agents, checks=checks, error=hidden(record.error))
