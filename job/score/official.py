"""The rule set `official`: the challenge's rules applied to everything the network does."""

from __future__ import annotations

from fractions import Fraction

from job.score.folding import Folding, fold
from job.score.formulas import Term
from job.score.graph import Graph, Operation
from job.score.operations import TABLE, is_counted
from job.score.permutations import VIEWS, shuffles
from job.score.storage import FREEBIE_BITS, Storage
from job.score.tally import Line, Tally, Values
from job.score.values import stored_values


def official(graph: Graph, storage: Storage) -> Tally:
    """Count every operator and every stored value of `graph`, folded, by the bits in `storage`.

    Operators without a row are left out; whoever calls has refused or listed them.
    """
    folding = fold(graph, storage.absorbs)
    shuffled = shuffles(graph)
    left = [operation for operation in graph.operations if operation.index not in folding.gone]
    lines = [_line(operation, folding, storage) for operation in left if is_counted(operation.name)]
    # The operator that is a shuffle has its row; of one that is written out only the views are seen.
    written_out = [graph.operations[index] for index in shuffled if graph.operations[index].name in VIEWS]
    lines += [_shuffle(operation, storage) for operation in written_out]
    matrices = {size: _matrix(graph.operations[index], size, storage) for index, size in shuffled.items()}
    return Tally((), tuple(lines), (*stored_values(left, folding, storage), *matrices.values()))


def _line(operation: Operation, folding: Folding, storage: Storage) -> Line:
    row = TABLE[operation.name]
    terms = row.cost(operation, storage.is_sparse)
    if operation.index in folding.shift_of and operation["bias"] is None:
        terms.append(Term(additions=operation.output.numel))  # the batch norm's shift is its bias now
    has_weight = any(not operand.is_activation for operand in operation.reads)
    kind = "matmul" if row.kind == "linear" and not has_weight else row.kind
    return _weighed(operation, kind, terms, storage)


def _shuffle(operation: Operation, storage: Storage) -> Line:
    terms = [Term(multiplications=operation.output.numel, inputs=operation.reads)]
    return _weighed(operation, "permutation", terms, storage)


def _matrix(operation: Operation, size: int, storage: Storage) -> Values:
    """Return a permutation's sparse matrix: `size` ones, and the bitmask that says where they are."""
    ones = size * (FREEBIE_BITS if storage.freebie else 32)
    return Values(operation.layer, f"{operation.layer}.permutation".lstrip("."), Fraction(ones + size**2, 32))


def _weighed(operation: Operation, kind: str, terms: list[Term], storage: Storage) -> Line:
    counted = sum(
        term.multiplications * storage.multiplication_bits(operation, term)
        + term.additions * storage.addition_bits(operation, term)
        for term in terms
    )
    return Line(
        operation.layer,
        kind,
        operation.name,
        sum(term.multiplications for term in terms),
        sum(term.additions for term in terms),
        Fraction(counted, 32),
    )
