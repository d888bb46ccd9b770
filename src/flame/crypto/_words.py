"""256 short, distinct English words: one for each byte of a fingerprint that is read over the telephone."""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """
    acid acorn actor album alpine amber anchor angle ankle apple april apron arch arrow atlas autumn
    bacon badge bamboo banjo barn basket beach beard bench berry bicycle bishop blanket bonus bottle bracket
    branch breeze brick bridge broom bucket buffalo bundle butter button cabin cactus camel candle canvas carpet
    castle cedar chalk cherry chimney circus clay clover cobra coffee comet compass copper coral cotton cradle
    crane crayon cricket crown crystal curtain daisy dancer december desert dinner dolphin donkey dragon drum eagle
    earth echo elbow elephant ember emerald engine falcon farmer feather fiddle finger flag flute forest fossil
    fountain fox frost galaxy garden garlic gazelle giant ginger giraffe glacier glove goblet gold grape gravel
    guitar hammer harbor harvest hazel helmet hermit hippo honey horizon hotel hunter igloo indigo insect iron
    island ivory jacket jaguar jelly jewel jigsaw jungle kayak kettle kidney kingdom kitchen kiwi ladder lagoon
    lantern lemon leopard letter library lily lion lizard lobster locket lotus lumber magnet mango maple marble
    meadow melon mirror monkey moss mountain muffin museum napkin needle nephew nickel north novel nutmeg oasis
    ocean octopus olive onion orange orbit orchid otter oxygen oyster paddle palace panda paper parrot pebble
    pepper piano pigeon pilot pirate planet plum pocket poem potato prairie pumpkin puzzle pyramid quartz queen
    rabbit radar radio raven ribbon river robin rocket rubber saddle saffron salmon sandal sapphire scarf shadow
    silver spider spoon squirrel stable sugar summit sunset table teapot temple thunder tiger timber toast tomato
    tulip tunnel turtle umbrella uncle valley velvet violin volcano wagon walnut whale willow window yellow zebra
    """.split()  # noqa: SIM905 - sixteen words a line read better than 256 literals
)
