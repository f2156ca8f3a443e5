"""Policies compute a steering from activations and a detector; all of them have `fit(cache, detector)`."""

from radiant_lens.analysis.steering import Steering as Steering
from radiant_lens.policies.ablation import AblationPolicy as AblationPolicy
from radiant_lens.policies.controls import IdentityPolicy as IdentityPolicy
from radiant_lens.policies.controls import RandomDirectionPolicy as RandomDirectionPolicy
from radiant_lens.policies.head_policy import HeadPolicy as HeadPolicy
from radiant_lens.policies.iti import ITIPolicy as ITIPolicy
from radiant_lens.policies.least_kl import LeastKLPolicy as LeastKLPolicy
from radiant_lens.policies.matching import LEACEPolicy as LEACEPolicy
from radiant_lens.policies.matching import LinearActPolicy as LinearActPolicy
from radiant_lens.policies.matching import MeanShiftPolicy as MeanShiftPolicy
from radiant_lens.policies.matching import MomentMatchingPolicy as MomentMatchingPolicy
from radiant_lens.policies.policy import Policy as Policy
from radiant_lens.policies.radiant import RadiantPolicy as RadiantPolicy
from radiant_lens.policies.registry import POLICIES as POLICIES
from radiant_lens.policies.registry import make_policy as make_policy
from radiant_lens.policies.sequential import SequentialFit as SequentialFit
from radiant_lens.policies.sequential import fit_sequential as fit_sequential
from radiant_lens.policies.trained import TrainedShiftPolicy as TrainedShiftPolicy
from radiant_lens.solvers.procrustes import solve_procrustes as solve_procrustes
from radiant_lens.solvers.solutions import ProcrustesSolution as ProcrustesSolution
from radiant_lens.solvers.solutions import TransportSolution as TransportSolution
from radiant_lens.solvers.transport import solve_transport as solve_transport
from radiant_lens.steering.editor import LayerEdit as LayerEdit
from radiant_lens.steering.held_out import HeldOutCertificate as HeldOutCertificate
from radiant_lens.steering.maps import AffineMap as AffineMap
from radiant_lens.steering.maps import Certificate as Certificate
