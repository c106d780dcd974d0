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
