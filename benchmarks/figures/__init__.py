"""Fills the figures of README.md and docs/*.md from the files with the results.

    make figures                                    # rewrites the documents
    cd benchmarks && python -m figures --check      # only says what would change

In a document, a comment after a number names the figure, and a comment before a table names what
writes it:

    ... takes 2.7<!-- figure: gradient-step --> times as long ...

    <!-- table: steps -->

    | | ... |

``values.py`` lists the figures, ``tables.py`` the tables. ``<!-- no file -->`` in their place marks
a measurement whose file is not kept; the text says so too. ``settings.py`` lists numbers that are
no measurements.
"""
