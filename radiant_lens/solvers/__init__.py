"""Solvers compute affine maps with certificates from moments of activations."""

from radiant_lens.solvers.certificates import MapCertificate as MapCertificate
from radiant_lens.solvers.certificates import certify_transport as certify_transport
from radiant_lens.solvers.procrustes import solve_procrustes as solve_procrustes
from radiant_lens.solvers.procrustes_problem import certify_procrustes as certify_procrustes
from radiant_lens.solvers.solutions import ProcrustesSolution as ProcrustesSolution
from radiant_lens.solvers.solutions import TransportSolution as TransportSolution
from radiant_lens.solvers.transport import solve_transport as solve_transport
