"""Why nothing is to be seen of some changes that mutmut makes: a pattern of `line → changed line`, and the reason."""

_SLOWER = "a shortcut: the result is the same, only slower"

REASONS = {
    r"strict=True.* → .*(strict=(None|False)|, \))": "both sides are as long as each other; `strict` guards it",
    r"shape\[-2:\] == \(side, side\)": _SLOWER,
    r"return slice\(0, 0\), slice\(0, 0\)": "a cut of nothing, spelt in another way",
    r"return slice\(rows\[0\], rows\[-1\] \+ 1\)": _SLOWER,
    r"lesion = np\.maximum\(predicted, reference\) > LIVER": _SLOWER,
    r"_joint_counts\(labelled, predicted, n \+ 1, n_classes\)": "one more row of zeros, which nobody reads",
    r"predicted\.max\(initial=0\), reference\.max\(initial=0\)": "of no pixels; there are two classes at least",
    r"np\.errstate\(": "a warning of numpy, no result",
    r"np\.full(_like)?\(.*, np\.nan\).* → .*np\.full(_like)?\(\w+, None\)": "None is NaN in an array of numbers",
    r"np\.float64\) → .*\(None\)|np\.float64\).* → .*(astype|to_numpy)\(None\)": "floats without being told",
    r"np\.zeros\(len\(patients\), dtype=int\) .* → np\.zeros\(len\(patients\), (dtype=None)?\)": "0.0 is fold 0",
    r"device=self\.device\).* → .*(device=None\)|int64, \))": "on a CPU the same",
    r"_FALSE_POSITIVE, 0, x\.area_px, 0, 0": "columns of reference lesions, not read of others",
    r"reshape\(-1, 3\).* → .*reshape\(-2, 3\)": "numpy takes any negative number",
    r"super\(\)\.sync\(dist_sync_fn, ": "torchmetrics itself puts the same in the place of None",
    r"should_sync: bool = True, →": "torchmetrics always says which",
    r"base is None and base_draws is None": "both are None, or neither",
    r"> 1e-9 .*>= 1e-9|> 1e-9 .* → .*>= 1e-9": "a bound of rounding: nothing lies on it",
    r"norm\.sf\(far\), \)": "numpy fills in 0 anyway",
    r"len\(column\) >= 1": "one draw does not differ from itself",
    r"effective_patients\(other\) <= effective_patients\(counts\)": "of equal numbers either will do",
    r"enough = .* → enough = math\.ceil\((2 / shortest\) \+ 1|1 / shortest\) \+ 2)$": "a later bound finds the same",
    r"orient=\"INDEX\"": "pandas takes it too",
    r"len\(counts\) > _MANY": _SLOWER,
    r"best, lowest = 0, math\.inf → best, lowest = 1, math\.inf": "the first part is taken in any case",
    r"indent=2": "how far JSON is indented is no promise",
}
