"""Labelled examples with their groups, loaders, and the embedded world."""

from radiant_lens.datasets.contexts import Contexts as Contexts
from radiant_lens.datasets.dataset import Dataset as Dataset
from radiant_lens.datasets.few_shot import QA_PAIRS as QA_PAIRS
from radiant_lens.datasets.few_shot import TRUTHFULQA_PAIRS as TRUTHFULQA_PAIRS
from radiant_lens.datasets.few_shot import TRUTHFULQA_TEMPLATE as TRUTHFULQA_TEMPLATE
from radiant_lens.datasets.few_shot import FewShot as FewShot
from radiant_lens.datasets.loading import load_dataset as load_dataset
from radiant_lens.datasets.readers.records import read_records as read_records
from radiant_lens.datasets.readers.records import write_records as write_records
from radiant_lens.datasets.records import Prompt as Prompt
from radiant_lens.datasets.records import Statement as Statement
from radiant_lens.datasets.templates import ChatTemplate as ChatTemplate
from radiant_lens.datasets.templates import TextTemplate as TextTemplate
from radiant_lens.datasets.templates import chat_template as chat_template
