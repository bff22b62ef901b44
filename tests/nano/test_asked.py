"""nano asked in a person's words, not its own generator's: most of it is answered right."""

import pytest

import gptoss_jax
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.turns import turns
from gptoss_jax.training.tasks.refusal import ABOUT, REFUSAL

# None: beyond its four digits, or its products of two digits by one, which it is to say.
SUMS = {
    "What is 347 + 586?": "933",
    "what is 347+586": "933",
    "347 + 586": "933",
    "347+586=": "933",
    "347 + 586 = ?": "933",
    "Hi! What is 12 + 9?": "21",
    "Hello, what is 12 plus 9?": "21",
    "Add 12 and 9": "21",
    "Add 12 to 9.": "21",
    "Sum of 12 and 9": "21",
    "What is the sum of 12 and 9?": "21",
    "What's 12 and 9 together?": "21",
    "WHAT IS 12 + 9?": "21",
    "12 plus 9": "21",
    "How much is 450 plus 550?": "1000",
    "9999 + 1": "10000",
    "9999 + 9999": "19998",
    "What is 0 + 0?": "0",
    "What is 7 + 8?": "15",
    "1 + 1": "2",
    "What is 2 + 2?": "4",
    "Please add 250 and 750.": "1000",
    "Can you add 5 and 6?": "11",
    "Compute 1234 + 4321": "5555",
    "What do 3 and 4 make?": "7",
    "What is 5000 + 5000?": "10000",
    "Calculate 88 + 12.": "100",
    "Tell me 64 + 36": "100",
    "How much is 999+1?": "1000",
    "71 minus 5": "66",
    "71 - 5": "66",
    "71-5": "66",
    "71 − 5": "66",
    "What is 71 minus 5?": "66",
    "5 less than 71": "66",
    "What is 5 less than 71?": "66",
    "Subtract 5 from 71": "66",
    "Take 5 away from 71": "66",
    "What is the difference between 71 and 5?": "66",
    "1000 - 999": "1",
    "1000 - 1": "999",
    "What is 10000 - 1?": None,
    "5 - 71": "-66",
    "What is 3 minus 8?": "-5",
    "100 - 100": "0",
    "What is 9999 - 9998?": "1",
    "2026 - 1987": "39",
    "How much is 500 - 125?": "375",
    "What is 1001 - 2?": "999",
    "Please subtract 30 from 100.": "70",
    "23 × 7": "161",
    "23 * 7": "161",
    "23*7": "161",
    "23 x 7": "161",
    "23 times 7": "161",
    "7 times 23": "161",
    "What is 23 times 7?": "161",
    "Multiply 23 by 7": "161",
    "What is the product of 23 and 7?": "161",
    "What is 6 times 7?": "42",
    "9 * 9": "81",
    "99 x 9": "891",
    "What is 50 times 2?": "100",
    "12 x 8 =": "96",
    "0 times 45": "0",
    "What is 10 * 10?": None,
    "What is   347   +   586  ?": "933",
    "Increase 347 by 586": "933",
    "Decrease 71 by 5": "66",
    "What is 45 – 17?": "28",
    "What is 8 · 12?": "96",
    "99999 + 1": None,
    "What is 99999999999999999999999999999999999999999999999999 + 1?": None,
    "-5 + 3": None,
    "What is 1,000 + 5?": None,
    "2^10": None,
    "347 +": None,
}
WORDS = {
    "Reverse the word planet": "tenalp",
    "Reverse the word Planet": "tenalp",
    "Reverse: hello": "olleh",
    "reverse hello": "olleh",
    "Spell banana backwards": "ananab",
    "What is stressed backwards?": "desserts",
    "Can you reverse the word guitar?": "ratiug",
    "Write python backwards": "nohtyp",
    "Reverse 'keyboard'": "draobyek",
    "How many p's are in apple?": "2",
    "How many r's are in strawberry?": "3",
    "How many R's are in Strawberry?": "3",
    'How many "s" are in mississippi?': "4",
    "How many times does the letter a appear in banana?": "3",
    "How many e's are there in cheese?": "3",
    "How many z's are in cat?": "0",
    "Count the letters of banana": "6",
    "Count the letters in elephant": "8",
    "How many letters are in banana?": "6",
    "How many letters does the word school have?": "6",
    "How long is the word cat?": "3",
    "Sort the letters of banana": "aaabnn",
    "Sort the letters of zebra": "aberz",
    "Sort the letters in the word hello": "ehllo",
    "Put the letters of planet in alphabetical order": "aelnpt",
    "Alphabetize the letters of house": "ehosu",
    "Sort the letters of Tree": "eert",
    "Count the letters in the word mississippi": "11",
    "How many s's are in mississippi?": "4",
    "How many i's in Mississippi?": "4",
    "Reverse mississippi": "ippississim",
    "Reverse the word a": "a",
    "Reverse the word aaaa": "aaaa",
    'How many "r"s are in strawberry?': "3",
    "How many l's does hello contain?": "2",
    "How many times does 'l' show up in hello?": "2",
    'Write "keyboard" in reverse': "draobyek",
    "Sort these letters: listen": "eilnst",
    "Sort cat's letters": "act",
    "How long is hello?": "5",
}
RECALLS = {
    "k1 is 42, k2 is 17, k3 is 88. What is k1?": "42",
    "k1 is 42, k2 is 17, k3 is 88. What is k3?": "88",
    "Anna: 31, Ben: 27, Carl: 45. What is Ben?": "27",
    "A=1, B=2, C=3. What is B?": "2",
    "apple: 12, pear: 7, plum: 30. What is pear?": "7",
    "Remember: ab is 15, cd is 92. What is cd?": "92",
    "x: 5\ny: 9\nz: 4\nWhat is y?": "9",
    "ab: 15, cd: 92, ef: 31. What is zz?": "zz is not in the list.",
    "Anna is 31, Ben is 27. How old is Ben?": "27",
    "The code for red is 41, the code for blue is 52. What is the code for blue?": "52",
    "k1=5, k2=8. Which is k2?": "8",
    "item1: 10, item2: 35, item3: 71, item4: 22. What is item3?": "71",
}
REFUSED = (
    "Write a poem about the sea",
    "What is the capital of France?",
    "Who was the first president?",
    "Tell me a joke",
    "Translate good morning to French",
    "What is 144 divided by 12?",
    "144 / 12",
    "Add 1, 2 and 3",
    "1 + 2 + 3",
    "What is 10 mod 3?",
    "What is 23 * 45?",
    "Multiply 12 by 34",
    "What is 12345 + 67890?",
    "What is 2 to the power of 8?",
    "What is the square root of 81?",
    "1.5 + 2.5",
    "What is 50% of 80?",
    "What is two plus two?",
    "How many vowels are in banana?",
    "How many legs does a spider have?",
    "How old are you when you retire?",
    "What is the weather in Berlin?",
    "Explain quantum physics",
    "Write a Python function that sorts a list",
    "What time is it?",
    "Is 7 a prime number?",
    "What is the meaning of life?",
    "Give me a recipe for soup",
    "Which is larger, 12 or 21?",
    "Convert 10 to binary",
    "I am 30 years old. How old am I?",
    "import os; print(os.listdir('.'))",
    "a: 1, b: 2, c: 3. What is the sum?",
    'How many letters are in "the quick brown fox"?',
    'Reverse "hello world"',
    "Reverse the sentence I love you",
    "Reverse the word café",
    "Reverse the word e-mail",
    "Reverse the word internationalization",
    "How many i's are in internationalization?",
)
ABOUT_IT = ("Hello!", "Who are you?", "What can you do?", "Hi, what is your name?", "hi")


@pytest.fixture(scope="module")
def nano():
    return gptoss_jax.load("nano", dtype="float32")


def answers(nano, asked) -> list[str]:
    prompts = [render_chat(nano[1], [{"role": "user", "content": text}]) for text in asked]
    requests = [Request(prompt, 384, temperature=0.0) for prompt in prompts]
    return [turn.text for turn in turns(engine_for(*nano, 32), nano[1], requests)]


def right(expected: str, text: str) -> bool:
    return text.lower().strip(".") == expected.lower().strip(".")


@pytest.mark.parametrize(
    ("expected", "most_wrong"),
    [
        ({k: v or REFUSAL for k, v in SUMS.items()}, 3),
        (WORDS, 3),
        (RECALLS, 1),
        (dict.fromkeys(REFUSED, REFUSAL), 3),
        (dict.fromkeys(ABOUT_IT, ABOUT), 0),
    ],
    ids=["sums", "words", "recalls", "refused", "about"],
)
def test_what_people_ask(nano, expected, most_wrong):
    given = zip(expected.items(), answers(nano, expected), strict=True)
    wrong = {text: said for (text, answer), said in given if not right(answer, said)}
    assert len(wrong) <= most_wrong, wrong
