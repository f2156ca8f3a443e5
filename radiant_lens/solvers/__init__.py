"""Solvers: moments of activations in, affine maps with their certificates out."""

from radiant_lens.solvers.procrustes import solve_procrustes as solve_procrustes
from radiant_lens.solvers.solutions import ProcrustesSolution as ProcrustesSolution
from radiant_lens.solvers.solutions import TransportSolution as TransportSolution
from radiant_lens.solvers.transport import solve_transport as solve_transport
