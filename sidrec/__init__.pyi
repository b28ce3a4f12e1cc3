# The public names for type checkers; tests/test_public.py compares them with __init__.py.

from sidrec.comparison.baselines.sasrec import SasRec as SasRec
from sidrec.comparison.baselines.sasrec_data import WindowDataModule as WindowDataModule
from sidrec.corpus.store import Corpus as Corpus
from sidrec.encoder.enmf.datamodule import UserDataModule as UserDataModule
from sidrec.encoder.enmf.module import Enmf as Enmf
from sidrec.encoder.module import BiEncoder as BiEncoder
from sidrec.generator.model.causal.causal_settings import CausalLmSettings as CausalLmSettings
from sidrec.generator.model.causal.causal_settings import CausalShape as CausalShape
from sidrec.generator.retrieval.retriever import Retriever as Retriever
from sidrec.generator.scorers.prior_settings import NextItemSettings as NextItemSettings
from sidrec.generator.scorers.prior_settings import PriorSettings as PriorSettings
from sidrec.generator.training.datamodule import GeneratorDataModule as GeneratorDataModule
from sidrec.generator.training.module import JointGenerator as JointGenerator
from sidrec.pairs.datamodule import PairDataModule as PairDataModule
from sidrec.semantic_ids.bundle.semantic_id_bundle import SemanticIdBundle as SemanticIdBundle
from sidrec.semantic_ids.callback import LearnedIdsCallback as LearnedIdsCallback
from sidrec.semantic_ids.callback import SemanticIdCallback as SemanticIdCallback
from sidrec.semantic_ids.collisions.policies import ExtraLevel as ExtraLevel
from sidrec.semantic_ids.collisions.policies import KeepCollisions as KeepCollisions
from sidrec.semantic_ids.collisions.policies import ReassignLastLevel as ReassignLastLevel
from sidrec.semantic_ids.collisions.sinkhorn import SinkhornLastLevel as SinkhornLastLevel
from sidrec.semantic_ids.learned.datamodule import VectorDataModule as VectorDataModule
from sidrec.semantic_ids.learned.method_settings import ResidualLfq as ResidualLfq
from sidrec.semantic_ids.learned.method_settings import RqVae as RqVae
from sidrec.semantic_ids.learned.module import QuantizerModule as QuantizerModule
from sidrec.semantic_ids.learned.quantizer import LearnedQuantizer as LearnedQuantizer
from sidrec.semantic_ids.per_task.prefix_share import PrefixShareSettings as PrefixShareSettings
from sidrec.semantic_ids.pipeline import append_ids as append_ids
from sidrec.semantic_ids.pipeline import fit_ids as fit_ids
from sidrec.semantic_ids.quantizers.balanced import BalancedRqKMeans as BalancedRqKMeans
from sidrec.semantic_ids.quantizers.controls import AtomicCodes as AtomicCodes
from sidrec.semantic_ids.quantizers.controls import RandomCodes as RandomCodes
from sidrec.semantic_ids.quantizers.dictionary import Dictionary as Dictionary
from sidrec.semantic_ids.quantizers.product import ProductQuantizer as ProductQuantizer
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans as RqKMeans
from sidrec.training.lora import LoraSettings as LoraSettings
from sidrec.training.sharding import ShardedStrategy as ShardedStrategy

__version__: str
__all__: list[str]
_MODULES: dict[str, str]

def public_classes() -> list[str]: ...
