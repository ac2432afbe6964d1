"""`ruvd` without the fence of its PostgreSQL store, to show that `replicas` finds what it prevents.

A commit changes its session whoever has it by now, and puts its messages behind all others.
"""

from __future__ import annotations

import sys

from ruvd.__main__ import main
from ruvd.stores.postgres import writes


def take_out_the_fence() -> None:
    fence = writes._UPDATE.index(" AND epoch"), writes._UPDATE.index(" RETURNING pk")
    update = writes._UPDATE[: fence[0]] + writes._UPDATE[fence[1] :]
    added = "cardinality(%(places)s::bigint[])"
    update = update.replace("%(new_message_count)s", f"sessions.message_count + {added}")
    update = update.replace("RETURNING pk,", f"RETURNING pk, message_count - {added} AS place,")
    writes._UPDATE = update
    writes._INSERT = writes._INSERT.replace("RETURNING pk,", "RETURNING pk, 0::bigint AS place,")
    writes._ADD = writes._ADD.replace("%(position)s + m.place", "target.place + m.place").replace(
        "m.exchange, target", "m.exchange + target.place, target"
    )


if __name__ == "__main__":
    take_out_the_fence()
    sys.exit(main())
