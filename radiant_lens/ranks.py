"""Former name of `radiant_lens.distributed`, for code that imports it."""

from radiant_lens.distributed import Rank as Rank
from radiant_lens.distributed import alone as alone
from radiant_lens.distributed import launched as launched
from radiant_lens.distributed import this_rank as this_rank
from radiant_lens.distributed import together as together
