"""Who the phantoms are: people and physicians that do not exist, with names as archives really have them."""

import uuid
from dataclasses import dataclass
from datetime import date

# The UUID under which all names of phantoms are hashed to UIDs (PS3.5 B.2), and the revision of what they look like:
# whoever changes a byte of them raises it, since one UID must never name two contents.
NAMESPACE = uuid.UUID("6f3c1f2e-6c0b-5b0a-9d52-0a6f6e1c7d11")
REVISION = 1

UTF_8 = "ISO_IR 192"


@dataclass(frozen=True, slots=True)
class Person:
    """A patient: the name, the SpecificCharacterSet that writes it (PS3.3 C.12.1.1.2), birth date and sex."""

    name: str
    charset: str | list[str]
    born: date
    sex: str
    weight: int  # kg
    scale: float  # of the head and chest


# The order is that of appearance: whoever asks for three patients gets an umlaut, two Japanese scripts, an apostrophe.
PEOPLE = (
    Person("Müller^Jürgen", "ISO_IR 100", date(1958, 3, 9), "M", 84, 1.0),
    Person("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"], date(1971, 11, 30), "M", 66, 0.94),
    Person("O'Brien^Siobhán^Mary", "ISO_IR 100", date(1990, 2, 28), "F", 61, 0.9),
    Person("Иванова^Мария", "ISO_IR 144", date(1944, 6, 1), "F", 70, 0.92),
    Person("Wang^XiaoDong=王^小东", UTF_8, date(2001, 12, 31), "M", 73, 0.98),
    Person("Παπαδοπούλου^Ελένη", "ISO_IR 126", date(1966, 8, 17), "F", 58, 0.91),
    Person("Hong^Gildong=洪^吉洞=홍^길동", ["", "ISO 2022 IR 149"], date(1983, 4, 4), "M", 75, 0.97),
    Person("Straße-Ångström^Åse", "ISO_IR 100", date(1936, 1, 1), "O", 55, 0.89),
)

# Referring physicians, study by study: mostly one Smith as different departments spell him, sometimes nobody; None is
# an attribute that is not there at all, which PS3.3 C.7.2.1 forbids (Type 2) and archives have.
PHYSICIANS: tuple[str | None, ...] = (
    "Smith^John",
    "SMITH^JOHN",
    "",
    "Smith, John",
    "Weiß^Änne^^Dr.",
    "Smith^John^^^",
    "Sato^Hanako=佐藤^花子",
    "smith^john^^Dr",
    None,
)


@dataclass(frozen=True, slots=True)
class Study:
    """One study of a phantom; everything about it follows from these four numbers."""

    seed: int
    day: date
    patient: int
    number: int

    @property
    def person(self) -> Person:
        """Who lies in the scanner."""
        return PEOPLE[self.patient % len(PEOPLE)]

    @property
    def patient_name(self) -> str:
        """The person's name; namesakes, once the table is used up, get a number as their middle name."""
        turn = self.patient // len(PEOPLE)
        if not turn:
            return self.person.name
        first, *others = self.person.name.split("=")
        family, given = first.split("^")[:2]
        return "=".join([f"{family}^{given}^{turn + 1}", *others])

    @property
    def patient_id(self) -> str:
        """The same for all studies of a patient, whatever their date."""
        return f"PHANTOM-{self.seed}-{self.patient + 1:03}"

    @property
    def physician(self) -> str | None:
        """The referring physician's name; None means that the attribute is absent."""
        return PHYSICIANS[(self.patient + self.number) % len(PHYSICIANS)]

    @property
    def charset(self) -> str | list[str]:
        """The person's character set, or UTF-8 when it cannot write the physician."""
        return self.person.charset if (self.physician or "").isascii() else UTF_8

    @property
    def age(self) -> str:
        """The age on the day of the study, as PS3.5 6.2 writes it."""
        born, day = self.person.born, self.day
        years = day.year - born.year - ((day.month, day.day) < (born.month, born.day))
        return f"{min(max(years, 0), 999):03}Y"

    @property
    def accession(self) -> str:
        """At most 16 characters."""
        return f"P{self.seed % 1000:03}{self.day:%y%m%d}{self.patient + 1:03}{self.number + 1:02}"

    @property
    def start(self) -> int:
        """When the study begins, in seconds since midnight."""
        return 8 * 3600 + (self.patient * 1380 + self.number * 4020) % (10 * 3600)

    def uid(self, *names: object) -> str:
        """The UID of the study, or of what these names mean in it."""
        name = "/".join(map(str, (REVISION, self.seed, self.day.isoformat(), self.patient, self.number, *names)))
        return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"
