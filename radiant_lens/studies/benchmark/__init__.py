"""`Benchmark`: all steerings on one task, each with the same gates and a strength that is set by the same KL."""

from radiant_lens.studies.benchmark.benchmark import ARMS as ARMS
from radiant_lens.studies.benchmark.benchmark import Benchmark as Benchmark
from radiant_lens.studies.benchmark.continuations import Continuations as Continuations
from radiant_lens.studies.benchmark.result import BenchmarkResult as BenchmarkResult
