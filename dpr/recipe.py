"""The recipe: one small YAML file that describes a collection completely, checked field by field."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpr.recipe_index import IndexConfig, LexicalConfig
from dpr.recipe_section import Name, Processors, Section, Share
from dpr.recipe_service import RerankConfig, ServeConfig

CorpusFormat = Literal[
    "auto",
    "dpr-tsv",
    "tsv",
    "csv",
    "beir",
    "jsonl",
    "json",
    "parquet",
    "arrow",
    "documents",
    "iceberg",
    "delta",
    "lance",
]
StoreAs = Literal["float16", "int8"]
ExtraType = Literal["string", "integer", "float", "boolean", "timestamp"]
Fp8Product = Annotated[str, Field(pattern=r"^(\d+\.)?(qkv|out|up|down)$")]


def _typed(extra: object) -> object:
    """Turn a list of names into names with the type of strings."""
    return dict.fromkeys(extra, "string") if isinstance(extra, list) and _are_names(extra) else extra


def _are_names(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)


class Columns(Section):
    """Which column or JSON field holds what; `meta.id` names a field within a field.

    In TSV and CSV a number names a column by its position, from 0.
    """

    id: str | int = "id"
    """Field with the passage id; a string, or an integer that is written as one."""
    title: str | int | None = "title"
    """Field with the title, a string or a number; null: passages have none."""
    text: str | int = "text"
    """Field with the text, or with a list of texts if `join` is set."""
    join: str | None = None
    """Separator that joins the texts of a list; null: a list is not accepted as text."""
    extra: Annotated[dict[str, ExtraType], BeforeValidator(_typed)] = Field(default={})
    """Further fields that travel with passages and come back in hits: a list of names, whose values are strings, or
    names with types (`{lang: string, year: integer}`)."""


class CorpusConfig(Section):
    """Where passages come from."""

    path: str | list[str]
    """File, folder, glob, table or URL (`s3://…`, `hf://datasets/ORG/NAME`), or a list of them."""
    format: CorpusFormat = "auto"
    """How to read it; `auto` looks at names and first bytes. `tsv` and `dpr-tsv` are the same."""
    columns: Columns = Columns()
    """Which fields hold what, in all formats but `documents`."""
    names: list[str] | None = None
    """Names of all columns, in order, of TSV and CSV files without a header; null: files are looked at."""
    quoting: Literal["auto", "csv", "none"] = "auto"
    """Whether fields of TSV may be quoted, as in CSV; `auto`: in files with a header, as DPR has it."""
    strict: bool = False
    """Whether a run stops if a file of a folder cannot be read; otherwise the file is left out and named."""
    passage_words: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Words per passage when documents are split (paper, section 4.1: 100)."""
    overlap_words: Annotated[int, Field(ge=0, le=9_999)] = 0
    """Words that a passage repeats from the one before it."""
    slice_bytes: Annotated[int, Field(ge=1_000)] = 64 * 2**20
    """Input bytes that one scan unit reads."""
    max_passage_chars: Annotated[int, Field(ge=1)] = 100_000
    """Longer passages are quarantined."""
    long: Literal["cut", "split"] = "cut"
    """How texts beyond the encoder's token limit are treated: `cut` drops their end, `split` makes windows of them."""
    rescan: Literal["changed", "always"] = "changed"
    """Which files a run reads: those whose size, time or ETag changed, or all."""

    @property
    def splits_long(self) -> bool:
        """Return whether long texts become windows, so that several rows may be one passage."""
        return self.long == "split"

    @model_validator(mode="after")
    def _overlap_is_shorter(self) -> Self:
        if self.overlap_words >= self.passage_words:
            raise ValueError(
                f"overlap_words is {self.overlap_words}; it must be below passage_words ({self.passage_words})"
            )
        return self

    @model_validator(mode="after")
    def _path_is_not_empty(self) -> Self:
        paths = [self.path] if isinstance(self.path, str) else self.path
        if not paths or "" in paths:
            raise ValueError("path is empty; name a file, a folder, a glob or a URL")
        return self


class EncoderConfig(Section):
    """Which encoder makes the vectors. What is null is read from the model folder itself."""

    model: Name
    """Passage tower: local folder, `package:NAME/folder`, `s3://…` folder, or hub id."""
    question_model: Name | None = None
    """Question tower, where it is another model (DPR); null: the same model."""
    revision: str | None = None
    """Hub revision (commit, tag)."""
    pooling: Literal["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"] | None = None
    """How token vectors become one."""
    normalize: bool | None = None
    """Whether vectors are scaled to length 1, so that passages are ranked by cosine; else by dot product. Null: as the
    similarity and the modules of the model folder say."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """First components of a vector that are kept, for Matryoshka models; null: as the model folder says."""
    max_tokens: Annotated[int, Field(ge=4, le=32_768)] | None = None
    """Longer inputs are cut to this many tokens, special ones included."""
    passage_prefix: str | None = None
    """Text put before each passage (E5: "passage: ")."""
    question_prefix: str | None = None
    """Text put before each question (E5: "query: ")."""
    title_join: Literal["pair", "space"] | None = None
    """`pair`: [CLS] title [SEP] text [SEP] as DPR does; `space`: title, one space, text."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """Arithmetic; `auto` takes bf16 where it is faster and as accurate on this device. `fp8` is for passages on GPUs
    that multiply it; questions are then encoded as `auto` says."""
    fp8_products: tuple[Fp8Product, ...] = ("qkv", "out", "up", "down")
    """With `fp8`: the products of a layer that are in it, the others in bf16. `up` means those of all layers, `3.up`
    that of the fourth."""
    tokens_per_batch: Annotated[int, Field(ge=64)] | None = None
    """Token budget of one batch; null: measured default for the device."""
    packing: Literal["auto", "never"] = "auto"
    """`auto`: without padding where device and network allow it; `never`: padded to nearly equal lengths."""
    store_as: StoreAs = "float16"
    """How passages' vectors are stored: `int8` takes half the bytes of `float16`, with one scale for each vector."""


class GateConfig(Section):
    """The measurements before a snapshot is published, and the figures that it must reach."""

    questions: Name | None = None
    """JSONL of {"question", "answers": [passage ids or strings]}, a BEIR folder, or a file in another common format,
    which is detected; null: sentences of 200 passages stand in."""
    answers: Literal["ids", "strings", "regex"] = "ids"
    """What counts as a hit: the passage's id, or an answer within its text: a string (paper, section 5), or a regular
    expression."""
    qrels: Name | None = None
    """Qrels file (BEIR's or TREC's) that selects and labels the questions, or a folder that holds `test.tsv`; null:
    `qrels/test.tsv`, `qrels.test.tsv` or `qrels.tsv` of the BEIR folder, or else those of another split."""
    max_questions: Annotated[int, Field(ge=1)] = 1000
    """Questions used; a larger set is sampled with the index seed."""
    at: list[Annotated[int, Field(ge=1, le=1000)]] = Field(default=[1, 5, 20, 100], min_length=1)
    """Ranks at which accuracy is reported."""
    min_recall: Share = 0.9
    """Recall of the index against exact search that it must reach: of the first `index.recall_at` hits."""
    min_accuracy: dict[int, Share] = Field(default={})
    """Share of questions that must be answered within the first k hits, e.g. {5: 0.7}."""
    max_drop: Share | None = 0.02
    """By how much the share of questions answered, within any rank of `at`, may fall below that of the live snapshot on
    the same questions. A drop that chance explains never stops a run. null: no comparison."""
    max_loss: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """By how much the share of questions answered within `index.recall_at` hits may be lower through the index than by
    exact search, e.g. 0.002. If it is set and the questions are too few to decide, sentences of as many passages as
    needed are added to them. A loss that chance explains never stops a run. null: it is only reported."""
    max_fp8_loss: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.002
    """By how much top-20 accuracy and nDCG@10 may be lower with passages in fp8 than with the same passages in bf16. A
    loss that chance explains never stops a run."""
    new_encoder: Literal["any", "better"] = "any"
    """The demand on a snapshot with another encoder than the live one. `better`: it must answer more of the same
    questions within some rank of `at`, by more than chance explains. `any`: no further demand."""
    after_publish: str | None = None
    """Shell command that checks the new snapshot once it is published, with its store and number in DPR_STORE and
    DPR_SNAPSHOT. If it fails, the previous snapshot becomes live again. null: none."""

    @model_validator(mode="after")
    def _demands_can_be_measured(self) -> Self:
        for field in ("qrels", "min_accuracy"):
            if getattr(self, field) and self.questions is None:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}, and there are no questions; name them in questions"
                )
        if unmeasured := sorted(set(self.min_accuracy) - set(self.at)):
            raise ValueError(
                f"min_accuracy demands rank {unmeasured[0]}, which is not among at {self.at}; add it there"
            )
        return self


class Limits(Section):
    """When a run stops instead of publishing."""

    max_quarantine_share: Share = 0.1
    """A larger share of unusable rows than this stops the run, however few they are."""
    max_quarantine_rows: Annotated[int, Field(ge=0)] = 100_000
    """More unusable rows than this stop the run, however small their share is."""
    max_shrink: Share = 0.2
    """A corpus that lost a larger share of its passages than this is refused without --allow-shrink."""
    lease_seconds: Annotated[float, Field(ge=30.0)] = 360.0
    """After this time without a heartbeat, the next run takes a run for lost. If it is shorter than the longest call to
    the store, a run can lose its lease; a longer time delays the run that replaces one whose machine was lost."""


class Resources(Section):
    """How the work is divided, and its resources."""

    segment_rows: Annotated[int, Field(ge=1, le=2**31)] = 50_000
    """Passages per segment at most; fewer where an encoder would need more than about 25 seconds for them."""
    encoders: Annotated[int, Field(ge=1)] = 1
    """Encoder actors at the start."""
    max_encoders: Annotated[int, Field(ge=1)] | None = None
    """Encoder actors at most; null: as at the start."""
    cpus_per_encoder: Processors | None = None
    """CPU threads an encoder actor uses, 1024 at most; null: 1 with a GPU, else all CPUs divided among the encoders."""
    gpus_per_encoder: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs an encoder actor holds; null: 1 where the cluster has any, else 0."""
    idle_seconds: Annotated[float, Field(ge=20.0)] = 1800.0
    """A worker on Ray that has a unit but uses no CPU, or sends no heartbeat, for this time is killed, and the unit is
    repeated. Heartbeats come every 5 seconds, so a bound below 20 could kill workers that compute."""
    price_per_gpu_hour: Annotated[float, Field(ge=0.0)] | None = None
    """Price of a GPU-hour in dollars, for `dpr plan` and the report; null: no costs of GPUs are shown."""
    price_per_1000_reads: Annotated[float, Field(ge=0.0)] = 0.0004
    """Price of 1,000 GET requests to the object store in dollars, for the report: Amazon's in US East."""
    price_per_1000_writes: Annotated[float, Field(ge=0.0)] = 0.005
    """Price of 1,000 PUT, COPY or LIST requests; deleting is free."""
    compact_below: Share = 0.5
    """Segments with a smaller share of live rows are compacted."""
    cache_gb: Annotated[float, Field(gt=0.0)] | None = None
    """Size limit of this machine's cache, in 10⁹ bytes; null: $DPR_CACHE_GB, or 50."""

    @model_validator(mode="after")
    def _encoders_grow(self) -> Self:
        if self.max_encoders is not None and self.max_encoders < self.encoders:
            raise ValueError(f"max_encoders is {self.max_encoders}; it must be at least encoders ({self.encoders})")
        return self


class Recipe(Section):
    """One collection: its corpus, its encoder, its index, and the figures that it must reach."""

    store: Name
    """Folder or `s3://bucket/prefix` that holds the collection and nothing else."""
    corpus: CorpusConfig
    encoder: EncoderConfig
    index: IndexConfig = IndexConfig()
    lexical: LexicalConfig = LexicalConfig()
    gate: GateConfig = GateConfig()
    limits: Limits = Limits()
    resources: Resources = Resources()
    rerank: RerankConfig | None = None
    """null: answers are not re-ranked."""
    serve: ServeConfig = ServeConfig()
