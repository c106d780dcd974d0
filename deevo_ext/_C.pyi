"""Compiled operators; addresses and sizes in. Use them through torch.ops.deevo."""

_Matrix = tuple[int, int, int]  # address, rows, row stride in elements
_Genes = tuple[int, int, int]  # address and number of the starts, address of the mask

def plan(
    settings: int,
    strategies: int,
    num_strategies: int,
    state: int,
    fitness: int,
    alive: int,
    num_members: int,
    generation: int,
    seed: int,
    choices: int,
    parameters: int,
    coefficients: int,
    gene_mask: int,
) -> None: ...
def tell(
    settings: int,
    strategies: int,
    num_strategies: int,
    trial_fitness: int,
    choices: int,
    parameters: int,
    num_members: int,
    seed: int,
    state: int,
    fitness: int,
    alive: int,
    generation: int,
    accepted: int,
    archive_slot: int,
) -> None: ...
def trials(
    dtype: str,
    population: _Matrix,
    archive: _Matrix,
    columns: int,
    nonneg_start: int,
    first_weight: int,
    choices: int,
    coefficients: int,
    genes: _Genes,
    lower: float,
    upper: float,
    seed: int,
    threads: int,
    members: int,
    num_trials: int,
    out: _Matrix,
) -> None: ...
def commit(
    dtype: str,
    population: _Matrix,
    archive: _Matrix,
    columns: int,
    nonneg_start: int,
    first_weight: int,
    choices: int,
    coefficients: int,
    genes: _Genes,
    lower: float,
    upper: float,
    seed: int,
    threads: int,
    accepted: int,
    archive_slot: int,
) -> None: ...

# In builds with CUDA alone.

_Queue = tuple[int, int]  # device, address of the stream

def cuda_plan(
    queue: _Queue,
    settings: int,
    strategies: int,
    num_strategies: int,
    state: int,
    state_size: int,
    fitness: int,
    alive: int,
    num_members: int,
    generation: int,
    seed: int,
    choices: int,
    parameters: int,
    coefficients: int,
    gene_mask: int,
    gene_mask_words: int,
) -> None: ...
def cuda_tell(
    queue: _Queue,
    settings: int,
    strategies: int,
    num_strategies: int,
    trial_fitness: int,
    choices: int,
    parameters: int,
    num_members: int,
    seed: int,
    state: int,
    state_size: int,
    fitness: int,
    alive: int,
    generation: int,
    accepted: int,
    archive_slot: int,
) -> None: ...
def cuda_trials(
    queue: _Queue,
    dtype: str,
    population: _Matrix,
    archive: _Matrix,
    columns: int,
    nonneg_start: int,
    first_weight: int,
    choices: int,
    coefficients: int,
    genes: _Genes,
    lower: float,
    upper: float,
    seed: int,
    members: int,
    num_trials: int,
    out: _Matrix,
) -> None: ...
def cuda_commit(
    queue: _Queue,
    dtype: str,
    population: _Matrix,
    archive: _Matrix,
    columns: int,
    nonneg_start: int,
    first_weight: int,
    choices: int,
    coefficients: int,
    genes: _Genes,
    lower: float,
    upper: float,
    seed: int,
    accepted: int,
    archive_slot: int,
) -> None: ...
def cuda_fold(
    queue: _Queue,
    source: str,
    target: str,
    rows: _Matrix,
    statistics: _Matrix,
    constants: int,
    table: int,
    eps: int,
    entries: int,
    weights: _Matrix,
    vectors: _Matrix,
) -> None: ...
def cuda_head(
    queue: _Queue,
    dtype: str,
    features: _Matrix,
    weight: _Matrix,
    bias: _Matrix,
    positions: int,
    channels: int,
    labels: int,
    samples: int,
    classes: int,
    smoothing: float,
    losses: _Matrix,
    ranks: _Matrix,
) -> None: ...
def cuda_loss_and_rank(
    queue: _Queue,
    dtype: str,
    logits: _Matrix,
    labels: int,
    samples: int,
    classes: int,
    smoothing: float,
    losses: _Matrix,
    ranks: _Matrix,
) -> None: ...

# In every build.

def fold(
    source: str,
    target: str,
    rows: _Matrix,
    statistics: _Matrix,
    constants: int,
    table: int,
    eps: int,
    entries: int,
    weights: _Matrix,
    vectors: _Matrix,
    threads: int,
) -> None: ...
def head(
    dtype: str,
    features: _Matrix,
    weight: _Matrix,
    bias: _Matrix,
    positions: int,
    channels: int,
    labels: int,
    samples: int,
    classes: int,
    smoothing: float,
    losses: _Matrix,
    ranks: _Matrix,
    threads: int,
) -> None: ...
def loss_and_rank(
    dtype: str,
    logits: _Matrix,
    labels: int,
    samples: int,
    classes: int,
    smoothing: float,
    losses: _Matrix,
    ranks: _Matrix,
    threads: int,
) -> None: ...
def exp_fixed(gap: float) -> int: ...
def fold_constants() -> tuple[int, int]: ...
def philox4x32(
    rounds: int, c0: int, c1: int, c2: int, c3: int, k0: int, k1: int
) -> tuple[int, int, int, int]: ...
def exact_log(x: float) -> float: ...
def sin2pi(t: float) -> float: ...
def normal_quantile(p: float) -> float: ...
def cauchy_quantile(p: float) -> float: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> bool: ...
def table_sizes() -> tuple[int, int, int, int, int, int, int]: ...
