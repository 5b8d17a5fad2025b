"""Why nothing is to be seen of some changes that mutmut makes: a pattern of `line → changed line`, and the reason."""

REASONS = {
    r"strict=True\)?.* → .*(strict=(None|False)|, \))": "both sides are as long as each other, `strict` only guards it",
    r"shape\[-2:\] == \(side, side\)": "a shortcut: resizing to the same size changes nothing",
    r"indent=2": "how far JSON is indented is no promise",
}
