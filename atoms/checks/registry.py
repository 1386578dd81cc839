"""The checks, in the order a certificate is read."""

from atoms.checks.check import Check
from atoms.checks.conditioning import Conditioning
from atoms.checks.identifiability import IdentifiabilityCheck
from atoms.checks.information.check import Information
from atoms.checks.isometry import IsometryCheck
from atoms.checks.joint import JointClaim
from atoms.checks.l1 import L1Check
from atoms.checks.metric_health import MetricHealth
from atoms.checks.probing import Use
from atoms.checks.representability import Representability
from atoms.checks.row_certificates import RowCertificatesCheck
from atoms.checks.separability import SeparabilityCheck
from atoms.checks.shift import Shift
from atoms.checks.sparsity import Sparsity
from atoms.checks.stability import Stability
from atoms.checks.uniqueness import UniquenessCheck

CHECKS: tuple[type[Check], ...] = (
    JointClaim,
    RowCertificatesCheck,
    Representability,
    Sparsity,
    SeparabilityCheck,
    IsometryCheck,
    Conditioning,
    UniquenessCheck,
    L1Check,
    IdentifiabilityCheck,
    Stability,
    Use,
    Information,
    Shift,
    MetricHealth,
)
