"""The data sets that can be asked for by name, and the two that every user has: folder:PATH and s3://bucket/prefix."""

from collections.abc import Sequence

from genmodels.data import readers, sprites
from genmodels.data.download import RemoteFile
from genmodels.data.entries import CatalogueEntry, bucket_entry, folder_entry
from genmodels.data.readers import DSPRITES, IDX_FILES
from genmodels.errors import unknown

DRAWN = "drawn by genmodels, from one seed"


def find(dataset: str) -> CatalogueEntry:
    """The entry of a name, of folder:PATH, or of s3://bucket/prefix.

    Raises:
        SpecError: for an unknown name or a folder that is not there.
        DataError: for a folder or prefix that holds no images or an unfit layout.
    """
    if dataset.startswith("folder:"):
        return folder_entry(dataset.removeprefix("folder:"))
    if dataset.startswith("s3://"):
        return bucket_entry(dataset)
    if dataset not in CATALOGUE:
        raise unknown("data set", dataset, [*CATALOGUE, "folder:PATH", "s3://BUCKET/PREFIX"])
    return CATALOGUE[dataset]


def _two_domains(
    name: str, title: str, counts: tuple[int, ...], sha256: str | None, licence: str = "not stated; research use"
) -> CatalogueEntry:
    """A set of Zhu et al. 2017; `counts` of trainA, trainB, testA, testB."""
    bases = (
        "https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets",
        "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets",
    )
    return CatalogueEntry(
        name=name,
        title=title,
        licence=licence,
        resolution=128,
        channels=3,
        read=readers.two_domains(name),
        unpaired=True,
        files=(RemoteFile(name=f"{name}.zip", urls=tuple(f"{base}/{name}.zip" for base in bases), sha256=sha256),),
        counts=dict(zip(("train_a", "train_b", "test_a", "test_b"), counts, strict=False)),
    )


def _idx_files(bases: Sequence[str], sums: Sequence[str]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(name=name, urls=tuple(f"{base}/{name}" for base in bases), sha256=sha256)
        for name, sha256 in zip(IDX_FILES, sums, strict=True)
    )


def _by_hand(name: str, file: str, source: str) -> str:
    return (
        f"{name} has no address to download from: {source}; put it at GENMODELS_MIRROR/{name.replace('_', '-')}/{file} "
        "(file:///FOLDER is a mirror too), or unpack it and use folder:PATH."
    )


CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="digits",
            title="handwritten digits, 8×8, from scikit-learn (UCI optical recognition, Alpaydin & Kaynak 1998)",
            licence="CC BY 4.0",
            resolution=8,
            channels=1,
            read=readers.digits,
            class_names=readers.DIGITS,
            counts={"train": 1617, "test": 180},
        ),
        CatalogueEntry(
            name="stacked_digits",
            title="three of scikit-learn's digits as the channels of an image: 1,000 numbers (after Metz et al. 2017)",
            licence="CC BY 4.0",
            resolution=8,
            channels=3,
            read=readers.stacked_digits,
            class_names=readers.NUMBERS,
            counts=readers.STACKS,
        ),
        CatalogueEntry(
            name="photos",
            title="crops of scikit-learn's two photographs: a temple (a) and a flower (b)",
            licence="CC BY 2.0",
            resolution=32,
            channels=3,
            read=readers.photos,
            unpaired=True,
            counts={"train_a": 400, "train_b": 400, "test_a": 64, "test_b": 64},
        ),
        CatalogueEntry(
            name="sprites",
            title="shapes of six known factors, drawn here as dSprites are (Matthey et al. 2017)",
            licence="CC0 1.0",
            resolution=sprites.SIDE,
            channels=1,
            read=readers.drawn_sprites,
            class_names=sprites.SHAPES,
            counts={"train": 18_000, "test": 2_000},
            how_to_get=DRAWN,
        ),
        CatalogueEntry(
            name="gaussians_8",
            title="points of 8 Gaussians on a ring (Srivastava et al. 2017, Lin et al. 2018)",
            licence="CC0 1.0",
            resolution=1,
            channels=2,
            read=readers.gaussians_on_a_ring,
            class_names=readers.RING,
            counts=readers.POINTS,
            how_to_get=DRAWN,
        ),
        CatalogueEntry(
            name="gaussians_25",
            title="points of 25 Gaussians on a grid (Srivastava et al. 2017, Lin et al. 2018)",
            licence="CC0 1.0",
            resolution=1,
            channels=2,
            read=readers.gaussians_on_a_grid,
            class_names=readers.GRID,
            counts=readers.POINTS,
            how_to_get=DRAWN,
        ),
        CatalogueEntry(
            name="dsprites",
            title="dSprites, shapes of six known factors, all combinations (Matthey et al. 2017)",
            licence="Apache 2.0",
            resolution=sprites.SIDE,
            channels=1,
            read=readers.dsprites,
            class_names=sprites.SHAPES,
            files=(
                RemoteFile(
                    name=DSPRITES,
                    urls=(f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{DSPRITES}",),
                ),
            ),
            counts={"all": 737_280},
        ),
        CatalogueEntry(
            name="mnist",
            title="MNIST handwritten digits, 28×28, at 32×32 with a margin (LeCun et al. 1998)",
            licence="CC BY-SA 3.0",
            resolution=32,
            margin=2,
            channels=1,
            read=readers.idx(readers.DIGITS),
            class_names=readers.DIGITS,
            files=_idx_files(
                (
                    "https://ossci-datasets.s3.amazonaws.com/mnist",
                    "https://storage.googleapis.com/cvdf-datasets/mnist",
                ),
                (
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            counts={"train": 60_000, "test": 10_000},
        ),
        CatalogueEntry(
            name="fashion_mnist",
            title="Fashion-MNIST, 28×28, at 32×32 with a margin (Xiao et al. 2017)",
            licence="MIT",
            resolution=32,
            margin=2,
            channels=1,
            read=readers.idx(readers.FASHION),
            class_names=readers.FASHION,
            files=_idx_files(
                (
                    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
                ),
                (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            counts={"train": 60_000, "test": 10_000},
        ),
        CatalogueEntry(
            name="cifar10",
            title="CIFAR-10, 32×32 colour images of ten classes (Krizhevsky 2009)",
            licence="not stated; research use",
            resolution=32,
            channels=3,
            read=readers.cifar10,
            class_names=readers.CIFAR10,
            files=(
                RemoteFile(
                    name="cifar-10-binary.tar.gz",
                    urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            counts={"train": 50_000, "test": 10_000},
        ),
        _two_domains(
            "horse2zebra",
            "horses (a) and zebras (b)",
            (1067, 1334, 120, 140),
            "a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1",
        ),
        _two_domains(
            "apple2orange",
            "apples (a) and oranges (b)",
            (995, 1019, 266, 248),
            "845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8",
        ),
        _two_domains(
            "summer2winter_yosemite",
            "Yosemite in summer (a) and in winter (b)",
            (1231, 962, 309, 238),
            "167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9",
        ),
        _two_domains(
            "monet2photo",
            "paintings by Monet (a) and photographs of landscapes (b)",
            (1072, 6287, 121, 751),
            "88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04",
        ),
        _two_domains(
            "cezanne2photo",
            "paintings by Cézanne (a) and photographs of landscapes (b)",
            (525, 6287, 58, 751),
            "3a6c10ca21f9485862f1cbd707744b9dc258954a04631271d23a3605eeb63cff",
        ),
        _two_domains(
            "ukiyoe2photo",
            "ukiyo-e prints (a) and photographs of landscapes (b)",
            (562, 6287, 263, 751),
            "02a2a2fb5ecf425ca1bf86aca7304377da64a2a1d3b86df54eb65e4068bf3b08",
        ),
        _two_domains(
            "vangogh2photo",
            "paintings by Van Gogh (a) and photographs of landscapes (b)",
            (400, 6287, 400, 751),
            "362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff",
        ),
        _two_domains(
            "maps",
            "aerial photographs (a) and maps (b) of the same places",
            (1096, 1096, 1098, 1098),
            "639534f69dbf9f36bef8d6292a7698006361221f83f0285d7c9ca78afe6e8a9e",
        ),
        _two_domains(
            "facades",
            "facades (a) and their label maps (b)",
            (400, 400, 106, 106),
            "9a31ebf3a31b9b5cd195dd5bf62e9308e00cb94604d1019e3889ac84248695c0",
        ),
        _two_domains(
            "iphone2dslr_flower",
            "flowers by telephone (a) and by reflex camera (b)",
            (1812, 3325, 569, 480),
            "8fcb5e374d631b107e1d961b8c4cd0a186aa2a4ff3e279923f4c426128de7113",
        ),
        _two_domains("ae_photos", "photographs, for artistic enhancement", (), None),
        CatalogueEntry(
            name="cityscapes",
            title="street scenes: label maps (a) and photographs (b), in CycleGAN's form (Cordts et al. 2016)",
            licence="Cityscapes licence: non-commercial, no redistribution",
            resolution=128,
            channels=3,
            read=readers.two_domains("cityscapes"),
            unpaired=True,
            files=(RemoteFile(name="cityscapes.zip"),),
            counts={"train_a": 2975, "train_b": 2975, "test_a": 500, "test_b": 500},
            how_to_get=_by_hand(
                "cityscapes",
                "cityscapes.zip",
                "get gtFine and leftImg8bit from https://www.cityscapes-dataset.com and pack colour label maps as "
                "trainA and testA, photographs as trainB and testB into cityscapes.zip",
            ),
        ),
        CatalogueEntry(
            name="utkface",
            title="UTKFace, aligned and cropped faces with sex (Zhang et al. 2017)",
            licence="non-commercial research only",
            resolution=64,
            channels=3,
            read=readers.utkface,
            class_names=("male", "female"),
            files=(RemoteFile(name="UTKFace.tar.gz"),),
            counts={"all": 23_708},
            how_to_get=_by_hand(
                "utkface",
                "UTKFace.tar.gz",
                "get UTKFace.tar.gz (aligned and cropped faces) by way of https://susanqq.github.io/UTKFace",
            ),
        ),
        CatalogueEntry(
            name="celeba",
            title="CelebA, aligned and cropped faces (Liu et al. 2015)",
            licence="non-commercial research only, no redistribution",
            resolution=64,
            channels=3,
            read=readers.celeba,
            files=(
                RemoteFile(
                    name="img_align_celeba.zip",
                    sha256="46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
                ),
            ),
            counts={"all": 202_599},
            how_to_get=_by_hand(
                "celeba",
                "img_align_celeba.zip",
                "get img_align_celeba.zip by way of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            ),
        ),
        CatalogueEntry(
            name="celeba_hq",
            title="CelebA-HQ, 30,000 faces at 1024×1024, in CelebAMask-HQ's form (Karras et al. 2018)",
            licence="non-commercial research only, no redistribution",
            resolution=256,
            channels=3,
            read=readers.celeba_hq,
            files=(RemoteFile(name="CelebAMask-HQ.zip"),),
            counts={"all": 30_000},
            how_to_get=_by_hand(
                "celeba_hq",
                "CelebAMask-HQ.zip",
                "get CelebAMask-HQ.zip by way of https://github.com/switchablenorms/CelebAMask-HQ",
            ),
        ),
    )
}
