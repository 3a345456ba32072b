"""Tests of `cortex.packages.requirements`."""

import pytest

from cortex.errors import Problems
from cortex.packages.requirements import REFERENCES, RequirementLine, Requirements, read_requirements

DIGEST = "sha256:" + "0a" * 32


def read(text: str, **files: str) -> Requirements | None:
    """`files` by name, with `__` for a dot."""
    project = {"requirements.txt": text, **{name.replace("__", "."): content for name, content in files.items()}}
    return read_requirements(lambda path: project[path].encode() if path in project else None)


def lines(text: str, **files: str) -> list[str]:
    found = read(text, **files)
    return [] if found is None else [line.text for line in found.lines]


def problems(text: str, **files: str):
    with pytest.raises(Problems) as caught:
        read(text, **files)
    return caught.value.problems


def test_a_project_without_the_file_asks_for_nothing():
    assert read_requirements(lambda path: None) is None


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "--pre\n", "\ufeff# a mark\r\n"])
def test_a_file_without_requirements_asks_for_nothing(text):
    assert read(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pillow", ["pillow"]),
        ("pillow==11.0.0\r\nsix\r\n", ["pillow==11.0.0", "six"]),
        ("  pillow >= 10, < 12  # images", ["pillow >= 10, < 12"]),
        ("pillow[xmp]==11; python_version >= '3.11'", ["pillow[xmp]==11; python_version >= '3.11'"]),
        ("# one\n\npillow # two\n#six\n", ["pillow"]),
        ("pillow \\\n  == 11.0.0\nsix", ["pillow == 11.0.0", "six"]),
        ("pillow==11 \\\n", ["pillow==11"]),
        ("x @ https://example.com/x-1.0.zip", ["x @ https://example.com/x-1.0.zip"]),
        ("x#y @ z", None),
    ],
)
def test_lines_are_read_as_pip_reads_them(text, found):
    if found is None:
        assert problems(text)
    else:
        assert lines(text) == found


def test_a_line_knows_where_it_stands_and_its_normalised_name():
    found = read("\n# x\nSome_Package.Name==1 \\\n  ; python_version > '3'\n")
    assert found is not None
    text = "Some_Package.Name==1 ; python_version > '3'"
    assert found.lines == (RequirementLine(text=text, name="some-package-name", where="requirements.txt:3"),)


def test_digests_that_the_user_accepts_are_kept_apart_from_the_requirement():
    found = read(f"pillow==11 --hash={DIGEST} \\\n    --hash={DIGEST}")
    assert found is not None
    assert (found.lines[0].text, found.lines[0].hashes) == ("pillow==11", (DIGEST, DIGEST))


def test_included_files_count_as_if_they_stood_there():
    found = read(
        "-r more.txt\nsix\n--constraint=limits.txt", more__txt="pillow\n-r requirements.txt", limits__txt="numpy<2"
    )
    assert found is not None
    assert [(line.text, line.where) for line in found.lines] == [
        ("pillow", "more.txt:1"),
        ("six", "requirements.txt:2"),
    ]
    assert [line.text for line in found.constraints] == ["numpy<2"]


def test_an_included_file_is_relative_to_the_one_that_names_it():
    project = {"requirements.txt": b"-r deps/a.txt", "deps/a.txt": b"-rb.txt\n-f ../wheels", "deps/b.txt": b"six"}
    found = read_requirements(project.get)
    assert found is not None
    assert [line.where for line in found.lines] == ["deps/b.txt:1"]
    assert found.folders == ("wheels",)


def test_options_say_where_packages_are_looked_for():
    text = """\
    --extra-index-url https://wheels.example.org/whl/cpu
    -i https://index.example.org/simple
    --find-links=wheels/
    --no-binary six,pillow
    --only-binary :all:
    --no-index
    --pre
    --require-hashes
    six
    """
    found = read("\n".join(line.strip() for line in text.splitlines()))
    assert found is not None
    assert found.options == (
        *("--extra-index-url", "https://wheels.example.org/whl/cpu", "--index-url", "https://index.example.org/simple"),
        *(
            "--find-links",
            "wheels",
            "--no-binary",
            "six",
            "--no-binary",
            "pillow",
            "--only-binary",
            ":all:",
            "--no-index",
        ),
    )
    assert found.prerelease
    assert found.folders == ("wheels",)


def test_cortex_itself_is_left_out_and_that_is_said():
    found = read("six\nCortex_Serving==0.1.0")
    assert found is not None
    assert [line.name for line in found.lines] == ["six"]
    assert [(w.reference, w.where) for w in found.warnings] == [("requirements-ours", "requirements.txt:2")]


@pytest.mark.parametrize(
    ("line", "reference", "hint"),
    [
        ("pillow=11", "requirements-syntax", "did you mean pillow==11?"),
        ("python=3.9", "requirements-syntax", "delete this line"),
        ("pil low", "requirements-syntax", "such as pillow"),
        ("pillow===", "requirements-syntax", "such as pillow"),
        ("-e .", "requirements-local", "the folder of cortex.yaml is on sys.path"),
        ("--editable=../lib", "requirements-local", "make a wheel"),
        ("-e git+https://x/y@main#egg=y", "requirements-vcs", "name an archive of one commit"),
        (
            "numpy @ file:///croot/numpy_1725/work",
            "requirements-local",
            "write its version: numpy==VERSION\n`pip list --format=freeze > requirements.txt`",
        ),
        (".", "requirements-local", "make a wheel"),
        ("./lib", "requirements-local", "make a wheel"),
        ("lib/thing", "requirements-local", "make a wheel"),
        ("thing.tar.gz", "requirements-local", "make a wheel"),
        ("/opt/thing", "requirements-local", "make a wheel"),
        ("thing @ file:///opt/thing.whl", "requirements-local", "make a wheel"),
        (
            "./wheels/some_thing-1.2-py3-none-any.whl",
            "requirements-local",
            "--find-links ./wheels\nsome-thing==1.2",
        ),
        ("git+https://github.com/a/b", "requirements-vcs", "archive/COMMIT.zip"),
        ("b @ git+ssh://git@github.com/a/b", "requirements-vcs", "archive/COMMIT.zip"),
        ("https://example.com/x.whl", "requirements-url", "NAME @ https://example.com/x.whl"),
        ("x @ http://example.com/x.whl", "requirements-url", ""),
        ("x @ ftp://example.com/x.whl", "requirements-url", ""),
        ("x @ https://me:pass@example.com/x.whl", "requirements-credentials", "~/.netrc"),
        ("--index-url https://me:pass@example.com/simple", "requirements-credentials", "UV_INDEX_URL"),
        ("--index-url file:///opt/simple", "requirements-outside", "copy it into the folder of cortex.yaml"),
        ("--find-links ../wheels", "requirements-outside", "copy it into the folder of cortex.yaml"),
        ("-r ../other.txt", "requirements-outside", "copy it into the folder of cortex.yaml"),
        ("-r /etc/passwd", "requirements-outside", "copy it into the folder of cortex.yaml"),
        ("-r other.txt", "requirements-file-missing", ".cortexignore"),
        ("-r https://example.com/r.txt", "requirements-include", "copy the file into the project"),
        ("--trusted-host example.com", "requirements-option", "supported are"),
        ("--index_url https://x", "requirements-option", "did you mean --index-url?"),
        ("--index-url", "requirements-option", ""),
        ("pillow==${VERSION}", "requirements-variable", "write the value out"),
        ("pillow==11 --hash=md5:abc", "requirements-hash", "64 hex digits"),
    ],
)
def test_what_cannot_be_locked_is_refused_with_what_to_write_instead(line, reference, hint):
    (problem,) = problems(f"six\n{line}\n")
    assert (problem.reference, problem.where) == (reference, "requirements.txt:2")
    assert hint in problem.hint
    assert "pass@" not in problem.message + problem.hint


def test_everything_that_is_wrong_is_told_at_once():
    text = "pillow=1\n-e .\ngit+https://x/y\n-r a.txt\n"
    found = problems(text, a__txt="--wat\n")
    assert [p.where for p in found] == ["requirements.txt:1", "requirements.txt:2", "requirements.txt:3", "a.txt:1"]


def test_files_are_named_from_where_the_user_stands():
    with pytest.raises(Problems) as caught:
        read_requirements({"requirements.txt": b"x y"}.get, folder="examples/image")
    assert caught.value.problems[0].where == "examples/image/requirements.txt:1"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_as_powershell_writes_it_is_read(encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"
    found = read_requirements({"requirements.txt": f"{mark}six\r\npillow\r\n".encode(encoding)}.get)
    assert [line.text for line in found.lines] == ["six", "pillow"]


def test_a_file_that_is_no_text_is_refused_with_its_line():
    with pytest.raises(Problems) as caught:
        read_requirements({"requirements.txt": b"six\n\xff"}.get)
    assert [(p.reference, p.where) for p in caught.value.problems] == [("not-utf8", "requirements.txt:2")]


def test_a_file_that_is_far_too_large_is_refused():
    assert problems("#" * 2**21)[0].reference == "requirements-too-large"


def test_files_that_include_one_another_without_end_are_refused():
    def endless(path: str) -> bytes:
        return f"-r x{path}\nsix".encode()

    with pytest.raises(Problems) as caught:
        read_requirements(endless)
    assert [p.reference for p in caught.value.problems] == ["requirements-too-large"]


def test_every_reference_is_explained_in_one_sentence():
    for reference, meaning in REFERENCES.items():
        assert reference.startswith("requirements-")
        assert meaning.endswith(".")
