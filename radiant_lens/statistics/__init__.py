"""Error rates, exact bounds, bootstrap intervals and paired differences; groups are the units."""

from radiant_lens.statistics.bounds import Interval as Interval
from radiant_lens.statistics.paired import PairedDifference as PairedDifference
from radiant_lens.statistics.rates import ErrorRates as ErrorRates
