"""Boot many kernels, judge each, and tell machines and people: ``xenemu smoke``.

`plan` reads what to boot. `runner` gives each boot a process of its own, where `session` drives the
guest. Such processes are `copies`: of the `nursery`, which has imported everything, or of another
boot at its snapshot. `verdict` says what became of a boot. `results` and its formats tell that.
`pytest_plugin` offers the same sessions to a person's own tests.
"""
