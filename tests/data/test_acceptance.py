import pytest

from filip.data.captions.judging import rejections

CASES = [
    ("a dog in the park", "", "empty"),
    ("a dog, in the Park", "A dog in the park.", "identical"),
    ("a dog in the park", "one dog inside a park", None),
    ("trolleybus", "trolleybus (in the English language)", "too_long"),
    ("two children playing football on a beach at sunset", "children playing", "too_short"),
    ("people who wrestle in a hall", "people fighting, fighting, fighting", "repetitive"),
    ("dog, dog and dog", "dog, dog, dog", None),
    ("two dogs", "2 dogs", None),
    ("one dog", "a dog", None),
    ("room 101 of the hotel", "room of the hotel", "number_lost"),
    ("1,000 people in the street", "1000 people on the street", None),
    ("two red cars", "red cars", "number_lost"),
    ("flag: Madagascar", "Flag of the United States", "name_lost"),
    ("a street in Reykjavík at night", "a night street in Reykjavik", None),
    ("Portrait Of A Young Woman By The Sea", "A portrait of a young woman at sea", None),
    ("a man riding a bike down a street", "ein Mann auf einem Fahrrad in der Straße", "not_english"),
    ("犬と猫", "", "empty"),
    ("A red wheel! Put the brake on the car", "A red wheel! Apply the brake of the car", None),
    ("A wheel! Then Ann put the brake on it", "A wheel! Then she braked", "name_lost"),
]


@pytest.mark.parametrize(("original", "translation", "reason"), CASES)
def test_rejection(original: str, translation: str, reason: str | None) -> None:
    assert rejections([original], [translation]) == [reason]
