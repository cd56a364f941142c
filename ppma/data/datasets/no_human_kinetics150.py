"""No-Human Kinetics-150: the clips of Kinetics-150 with people painted over by HAT, as folders of frames."""

from ppma.data.adapter import Dataset, Download, Labels, Splits

NAMES = """\
applauding|bandaging|bartending|bee keeping|bench pressing|bending metal|blowing out candles|bowling|brushing teeth|bungee jumping|\
carrying baby|cartwheeling|catching fish|catching or throwing baseball|catching or throwing frisbee|catching or throwing softball|\
celebrating|changing oil|chopping wood|cleaning floor|cleaning pool|climbing tree|cooking chicken|cooking on campfire|cooking sausages|\
counting money|country line dancing|cracking neck|decorating the christmas tree|dining|doing aerobics|doing laundry|dribbling basketball|\
drinking beer|driving car|drop kicking|eating burger|eating cake|eating carrots|eating chips|eating ice cream|eating watermelon|\
exercising arm|faceplanting|feeding birds|flipping pancake|frying vegetables|getting a haircut|giving or receiving award|golf putting|\
grinding meat|grooming dog|gymnastics tumbling|hammer throw|headbutting|high kick|hitting baseball|hopscotch|hurdling|hurling (sport)|\
ice skating|jogging|juggling fire|jumpstyle dancing|kitesurfing|knitting|lunge|making pizza|mopping floor|moving furniture|opening bottle|\
parasailing|parkour|passing American football (not in game)|peeling apples|peeling potatoes|petting cat|planting trees|playing accordion|\
playing badminton|playing bagpipes|playing bass guitar|playing cards|playing chess|playing clarinet|playing controller|playing didgeridoo|\
playing ice hockey|playing kickball|playing organ|playing paintball|playing recorder|playing saxophone|playing trombone|playing trumpet|\
playing volleyball|pole vault|presenting weather forecast|recording music|riding mule|riding scooter|riding unicycle|robot dancing|\
rock scissors paper|roller skating|sailing|salsa dancing|sanding floor|shaking hands|shaking head|sharpening pencil|shooting basketball|\
singing|skateboarding|skiing (not slalom or crosscountry)|skiing crosscountry|snatch weight lifting|sneezing|sniffing|snowboarding|\
snowkiting|snowmobiling|somersaulting|spray painting|spraying|squat|sticking tongue out|stomping grapes|surfing crowd|\
swimming breast stroke|swimming butterfly stroke|swinging on something|taking a shower|tap dancing|tapping guitar|tapping pen|tickling|\
tossing salad|trimming or shaving beard|tying bow tie|tying knot (not on a tie)|using segway|walking the dog|washing dishes|washing feet|\
water sliding|waxing eyebrows|welding|whistling|wrestling"""
CLASSES = NAMES.split("|")


def read(download: Download) -> Splits:
    """`{train,val}/inp/<class>/<id>_<start>_<end>/`: inp holds the result; seg and ori, masks and originals, are left alone."""
    labels = Labels(CLASSES)
    paths = {split: download.clips(f"{split}/inp") for split in ("train", "val")}
    clips = {split: [(path, labels[path.split("/")[2]]) for path in paths[split]] for split in paths}
    return Splits(classes=CLASSES, clips=clips)


DATASET = Dataset(
    name="no-human-kinetics150",
    title="No-Human Kinetics-150: web videos with their people removed",
    classes=150,
    published={"train": 89665, "val": 7423},
    splits="the folders train and val",
    layout=("train/inp/*/*", "val/inp/*/*"),
    files="val/inp/peeling apples/erjpP2MAlOQ_000001_000011/000001.jpg (YouTube id, first and last second); 25 frames a second are assumed",
    licence="as Kinetics: lists CC BY 4.0, videos of those who uploaded them",
    terms="",
    home="https://github.com/howardzh01/PPMA, made with https://github.com/princetonvisualai/HAT from Kinetics-400",
    citation="Zhong et al.: Learning Human Action Recognition Representations Without Real Humans, NeurIPS 2023",
    read=read,
    domain="human-removed",
    source="no-human-kinetics",
    unconfirmed=(
        "the authors publish how to make it, with lists of paths; whether they hand out the frames was not confirmed",
        "their own datasheet says that some people remain: `ppma audit` counts them",
    ),
)
