"""Words to ask about: common English ones, and made-up ones that nobody learns by heart."""

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Lower case, and none that contains a word of a harmony header (user, final, …): those are one
# token, whose letters the model does not see.
NOUNS = _words(
    """
    apple arm art atom autumn baby bag ball banana bank basket beach bear bed bee bell bird boat
    body bone book bottle bowl box boy branch bread brick bridge brother brush bucket butter cake
    camera candle car card castle cat chair cheese cherry chess child church circle city clay cloud
    coat coffee coin color comet computer copper corner cotton country cow crown cup curtain dance
    day desert desk diamond doctor dog dollar door dragon dream dress drum duck dust eagle ear earth
    egg elephant engine evening eye face family farm father feather field finger fire fish flag
    flame flower flute forest fork fox frog fruit galaxy game garden gate ghost giant girl glass
    glove goat gold grape grass gravity guitar hair hammer hand harbor hat heart hill history honey
    horse hospital house ice ink insect island jacket jar jungle key king kitchen kite knife ladder
    lake lamp language leaf lemon letter library light lion lizard lock lunch machine magnet map
    marble market mask meadow meat metal milk mirror money monkey moon morning mother mountain mouse
    mouth museum mushroom music nail name needle nest night nose number oak ocean office oil olive
    onion orange orchid owl page paint palace panda paper parrot party peach pear pencil pepper
    piano picture pig pillow pilot pirate pizza planet plant plate pocket poem poet potato prince
    prison pumpkin puppy puzzle queen rabbit radio rain rainbow ring river road robot rocket roof
    room root rope rose salad salt sand school science scissors sea season secret seed shadow sheep
    ship shirt shoe shop silver singer sister skin sky snake snow soap sock soil song soup space
    spider spoon spring square stamp star statue steam stone storm story stove strawberry street
    sugar summer sun sword table tail tea teacher temple tent theater thunder tiger time toe tomato
    tooth tower town toy tractor train tree triangle truck tulip turtle umbrella uncle valley van
    vase violin voice volcano wagon wall watch water wave wheel whistle wind window wine wing winter
    wolf woman wood wool world worm yard year zebra balloon banner barrel bubble button cannon
    carrot collar committee dinner dollhouse ferry football giraffe goose grill hobby hippo jelly
    kettle kitten lesson lettuce message mississippi missile noodle paddle puddle raccoon ribbon
    saddle sheet spell squirrel subway success sunny swimming tattoo tennis toffee traffic tunnel
    village waffle wallet weekend
    """
)
OTHERS = _words(
    """
    above accent across address again always angry basic begin below blue brave bright bring build
    busy careful carry catch cheap choose clean clever climb close cold cool count create cross dark
    deep dirty drink drive early easy eat eight empty enjoy enough every fast fifteen first five
    follow forget four free fresh friendly full funny gentle give good great green grow happy hard
    heavy hello help hidden high hold hungry jump keep kind large laugh lazy learn listen little
    long loud lucky many mild mix modern move narrow never new nine noisy often old open perfect
    plain play polite poor pretty proud pull push quick quiet quite rare read red remember rich
    right ripe rough round run sad safe seven sharp shiny short shout simple sing sixteen sleep slow
    small smart smile smooth soft speak spicy stand strange strong sudden sweet swim tall ten thank
    thick thin think three throw tiny tired today tomorrow travel twelve twenty under visit wait
    walk warm wash weak wet white wide wild write wrong yellow yesterday young zero
    """
)
NAMES = _words(
    """
    Ada Alan Amy Anna Ben Bob Carl Cleo Dan Dora Ella Emma Eric Eva Finn Fred Gina Hans Ida Ivan
    Jack Jane Joan John Kate Kim Lena Leo Lisa Luis Mara Mary Max Maya Mia Nina Noah Nora Olga Omar
    Otto Paul Pia Rosa Ruth Sam Sara Theo Tim Tom Uma Vera Zoe
    """
)
CITIES = _words(
    """
    Athens Berlin Bern Boston Cairo Dakar Delhi Dublin Geneva Lagos Lima Lisbon London Madrid Milan
    Nairobi Oslo Paris Prague Quito Riga Rome Seoul Sofia Sydney Tokyo Turin Vienna Warsaw
    """
)
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_HEADERS = ("system", "user", "assistant", "developer", "analysis", "commentary", "final", "json")


def word(rng: Random) -> str:
    """A word of 1 to 12 letters, few of 1 or 2: English, pronounceable, or any letters.

    One in fifty repeats itself, as vivivi and aaaa do: copying such a one is another skill.
    """
    draw = rng.random()
    if draw < 0.05:
        return "".join(rng.choices(_ALPHABET, k=1 if draw < 0.01 else 2))
    if rng.random() < 0.02:
        return repeating(rng, rng.randint(3, 12))
    draw = rng.random()
    if draw < 0.3:
        return rng.choice(NOUNS + OTHERS)
    length = rng.randint(3, 12 if rng.random() < 0.3 else 9)
    made = pronounceable(rng, length) if draw < 0.8 else "".join(rng.choices(_ALPHABET, k=length))
    if rng.random() < 0.25:
        made = _doubled(rng, made)
    return made if not any(header in made for header in _HEADERS) else word(rng)


def _doubled(rng: Random, made: str) -> str:
    """With one of its letters twice, in a row as in coffee or apart as in pepper."""
    place = rng.randrange(len(made) - 1)
    again = place + 1 if rng.random() < 0.6 else rng.randrange(len(made))
    return made[:again] + made[place] + made[again + 1 :]


def repeating(rng: Random, length: int) -> str:
    """A few letters over and over, and perhaps others before or behind them."""
    part = pronounceable(rng, rng.choice((1, 2, 2, 3, 3)))
    around = pronounceable(rng, rng.randint(0, length // 2))
    text = part * (1 + (length - len(around)) // len(part)) + around
    text = text if rng.random() < 0.6 else text[::-1]
    return text[:length]


def long_word(rng: Random) -> str:
    """One of 15 letters or more, beyond what is spelled."""
    length = rng.randint(15, 28)
    return repeating(rng, length) if rng.random() < 0.3 else pronounceable(rng, length)


def pronounceable(rng: Random, length: int) -> str:
    """Consonants and vowels in turn, now and then one of a kind twice."""
    letters, vowel = [], rng.random() < 0.4
    for _ in range(length):
        letters.append(rng.choice(VOWELS if vowel else CONSONANTS))
        if rng.random() < 0.85:
            vowel = not vowel
    return "".join(letters)
