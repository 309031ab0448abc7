"""The names and things that the parametric questions speak of, with articles and units where a text needs them."""

from __future__ import annotations

# fmt: off
NAMES = (
    "Aisha", "Amara", "Anders", "Beatriz", "Boris", "Carmen", "Chidi", "Clara", "Daniel", "Deniz", "Elena", "Emeka",
    "Farid", "Fiona", "Gustav", "Hana", "Henrik", "Ines", "Ivan", "Jakob", "Jasmin", "Kenji", "Laila", "Lucia",
    "Marek", "Maya", "Mei", "Milan", "Nadia", "Nikhil", "Noor", "Olivia", "Omar", "Paula", "Priya", "Rafael", "Ravi",
    "Rosa", "Samir", "Sofia", "Stefan", "Tara", "Tomas", "Valentina", "Wanda", "Yusuf", "Zoe",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)
TOWNS = (
    "Basel", "Bergen", "Bologna", "Bremen", "Brno", "Cork", "Dijon", "Gdansk", "Ghent", "Girona", "Graz", "Leeds",
    "Leipzig", "Lyon", "Malmö", "Nantes", "Porto", "Tampere", "Trieste", "Utrecht",
)
CITIES = (
    "Lisbon", "Vienna", "Athens", "Kraków", "Barcelona", "Edinburgh", "Florence", "Istanbul", "Prague", "Copenhagen",
    "Seville", "Budapest", "Naples", "Berlin", "Dublin", "Riga", "Marseille", "Amsterdam",
)
SUBJECTS = (
    "biology", "chemistry", "statistics", "economics", "law", "physics", "psychology", "history", "anatomy",
    "sociology", "philosophy", "geology",
)
GOODS = (
    "a winter coat", "a suitcase", "a desk chair", "a tent", "a coffee machine", "a bookcase", "a microwave",
    "a bicycle helmet", "a rug", "a pair of boots", "a power drill", "an armchair", "an espresso maker",
    "a sleeping bag", "a camera bag", "a keyboard", "an air purifier", "a garden table",
)
OVEN_DISHES = (
    "a roast chicken", "a vegetable lasagne", "a moussaka", "a nut roast", "a potato gratin", "a shepherd's pie",
    "an aubergine bake", "a leek and cheese pie", "a fish pie", "a stuffed pumpkin",
)
SIGHTS = (
    "the old town walk", "the science museum", "the botanical garden", "the castle tour", "the harbour boat trip",
    "the cathedral tower", "the flea market", "the photography exhibition", "the aquarium", "the chocolate workshop",
    "the tram museum", "the rooftop garden", "the puppet theatre", "the railway museum", "the sculpture park",
)
EVENTS = (
    "a street party", "a school concert", "a charity run", "a neighbourhood flea market", "a chess tournament",
    "a poetry evening", "a retirement party", "an open day", "a family reunion", "a film night", "a science fair",
)
GOALS = (
    "a used piano", "a language course", "an electric bicycle", "a sewing machine", "a new laptop",
    "a trip to Iceland", "a telescope", "a canoe", "a good mattress", "a driving licence", "a camera",
)
MATTERS = (
    "a new logo", "the summer party", "the office move", "next year's budget", "a new software supplier",
    "the opening hours", "the name of the product", "a rule for working from home", "the site of the new shop",
    "the topic of the conference", "the design of the website",
)
WARM = (
    "in the oven at 80 °C", "under a clean cloth", "between two plates", "in a covered pan", "in foil",
    "on a plate over hot water", "in the oven at 70 °C", "under a lid",
)
ASIDES = (
    "my brother does all this quite differently but he is in Canada", "there was a song about it once",
    "I was told so by a man on a train", "sorry, the phone rang just now", "as my old teacher liked to say",
    "which reminds me that I should water the plants", "people have written whole books about less",
    "let me think, it was raining when I did it last", "not that anybody asked me",
    "and I had a cold that week so bear with me", "my neighbour always laughs at this part",
    "it is a bit like packing a suitcase, or maybe not", "where was I, yes",
)
# fmt: on

STUFF = tuple(
    (*unit, stuff)
    for unit, things in (
        (("kg", "kilogram", "g"), ("flour", "rice", "coffee", "lentils", "bird seed", "clay", "sugar", "oats")),
        (("litres", "litre", "ml"), ("soup", "apple juice", "paint", "lemonade", "shampoo", "olive oil", "broth")),
    )
    for stuff in things
)
"""Large unit, its name in the singular, small unit, and what is measured."""

DISHES = (
    ("pizza dough", "flour"),
    ("flatbread", "flour"),
    ("apple crumble", "apples"),
    ("potato salad", "potatoes"),
    ("lentil soup", "lentils"),
    ("rice salad", "rice"),
    ("ratatouille", "tomatoes"),
    ("fish stew", "fish"),
    ("fruit salad", "fruit"),
    ("vegetable curry", "cauliflower"),
)
"""A dish and the ingredient that is asked for."""

CROPS = (
    ("lettuces", 30, 30),
    ("leeks", 30, 15),
    ("strawberries", 50, 30),
    ("beetroots", 30, 10),
    ("onions", 25, 10),
    ("cabbages", 50, 50),
    ("kohlrabi", 30, 25),
    ("celery plants", 40, 40),
    ("broccoli plants", 50, 50),
    ("fennel bulbs", 40, 30),
)
"""A crop, the distance of its rows and the distance within a row, in cm."""

MEALS = (
    ("a barbecue", "meat or grilled cheese", "potato salad", (220, 250, 300)),
    ("a birthday lunch", "roast meat or vegetable bake", "potatoes", (180, 200, 220)),
    ("a chilli evening", "beef or beans", "rice, weighed cooked", (180, 200, 220)),
    ("a pasta dinner", "dry pasta", "sauce", (100, 110, 125)),
    ("a raclette evening", "cheese", "boiled potatoes", (180, 200, 220)),
    ("a summer buffet", "quiche or cold roast", "potato salad", (180, 200, 220)),
)
"""An occasion, its main dish, its side dish, and grams of the main dish a head that may be taken."""
