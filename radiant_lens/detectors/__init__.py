"""Risk-aware detectors: one score for every head, one vote for every layer."""

from radiant_lens.detectors.artefact import load_detector as load_detector
from radiant_lens.detectors.artefact import save_detector as save_detector
from radiant_lens.detectors.classifier import RiskAwareClassifier as RiskAwareClassifier
from radiant_lens.detectors.detector import RiskAwareDetector as RiskAwareDetector
from radiant_lens.detectors.refit import refit_joint as refit_joint
from radiant_lens.detectors.votes import Detection as Detection
from radiant_lens.detectors.votes import choose_thresholds as choose_thresholds
