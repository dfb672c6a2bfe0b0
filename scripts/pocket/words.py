"""The words that prompts are composed of: who, where, what, and what children ask about."""

HEROES = (
    "a small fox", "a shy rabbit", "a brown bear", "a little duck", "a young owl", "a gray mouse", "a friendly dog",
    "a curious kitten", "a tiny ant", "a slow turtle", "a green frog", "a proud rooster", "a gentle horse",
    "a baby elephant", "a clever crow", "a sleepy hedgehog", "a busy bee", "a white goat", "a young deer",
    "a happy penguin", "a small dragon", "a toy robot", "a rag doll", "a snowman", "a farmer", "a baker",
    "a fisherman", "a shepherd", "a gardener", "a bus driver", "a little girl", "a little boy", "a young prince",
    "a small sister", "a big brother", "a grandmother", "a grandfather", "a new pupil", "a lonely giant",
    "a kind witch", "a squirrel", "a little pig", "a black cat", "a beaver", "a wise old toad",
)  # fmt: skip
NAMES = (
    "Pip", "Lily", "Tom", "Mia", "Ben", "Rosa", "Max", "Anna", "Sam", "Ella", "Leo", "Nina", "Oscar", "Ruby",
    "Finn", "Clara", "Toby", "Daisy", "Hugo", "Ivy", "Jack", "Molly", "Noah", "Poppy", "Felix", "Hazel", "Otto",
    "Sara", "Bruno", "Maya", "Kofi", "Amina", "Diego", "Yuki", "Omar", "Priya", "Chen", "Zara", "Luca", "Freya",
    "Milo", "Tess", "Gus", "Wren",
)  # fmt: skip
PLACES = (
    "in the forest", "on a farm", "near the river", "at the beach", "in the garden", "at school",
    "in a small village", "on a high hill", "in the kitchen", "at the market", "in the park", "by the lake",
    "in a big city", "under the old oak tree", "on a little island", "in the attic", "in the barn",
    "at the playground", "in the library", "on the train", "in the snow", "in a meadow", "on the bridge",
    "at the bakery", "in a cave", "on a boat", "in the back yard", "at the pond", "in the orchard",
    "in the mountains", "at the bus stop", "in the toy shop", "in the desert", "on the way home",
)  # fmt: skip
OBJECTS = (
    "a red kite", "a shiny key", "a blue ball", "a wooden box", "a lost mitten", "a warm blanket",
    "a loaf of bread", "a silver bell", "a broken toy", "a big umbrella", "a basket of apples", "a letter", "a map",
    "a paper boat", "a drum", "a glass marble", "a pair of boots", "a birthday cake", "a lantern", "a small seed",
    "a yellow hat", "an old book", "a bicycle", "a jar of honey", "a feather", "a round stone", "a puppet",
    "a bucket of paint", "a ladder", "a whistle", "a sled", "a pot of soup", "an egg", "a music box", "a ribbon",
    "a pumpkin", "a balloon", "a spoon", "a wagon", "a nest",
)  # fmt: skip
PROBLEMS = (
    "could not sleep", "had lost something dear", "was afraid of the dark", "did not want to share",
    "broke a promise", "got lost on the way home", "was too small to help", "had an argument with a friend",
    "told a lie", "wanted to win a race", "had no one to play with", "was stuck in the mud",
    "forgot an important thing", "was late for supper", "heard a strange noise", "could not reach the top shelf",
    "wanted to learn to swim", "was caught in a storm", "had to wait a very long time", "missed an old friend",
    "spilled the milk", "did not like being different", "wanted to fly", "had a cold", "was very hungry",
    "had to clean up a big mess", "was scared to try something new", "found a bird with a hurt wing",
    "had to say sorry", "wanted to make a present",
)  # fmt: skip
FEELINGS = (
    "happy", "sad", "proud", "lonely", "curious", "angry", "brave", "shy", "excited", "tired", "worried",
    "grateful", "calm", "surprised", "jealous", "hopeful", "silly", "nervous",
)  # fmt: skip
MORALS = (
    "sharing makes everyone happy", "it is good to tell the truth", "friends help each other",
    "practice makes things easier", "it is fine to be different", "being kind costs nothing",
    "small helpers can do big things", "it is brave to ask for help", "patience is worth it",
    "you should keep your promises", "saying sorry mends a friendship", "you should look before you leap",
    "everyone makes mistakes", "listening is as important as talking", "home is where someone waits for you",
    "working together is faster", "you should take care of your things", "a good friend is a treasure",
)  # fmt: skip
DAYS = (
    "One sunny morning", "One rainy afternoon", "One cold evening", "One windy day", "On a quiet night",
    "One snowy day", "One warm summer day", "Early one morning", "Late one afternoon", "On the first day of spring",
    "One foggy morning", "After lunch", "On a bright autumn day", "Just before bedtime", "One Saturday",
    "Once upon a time", "One day", "Long ago", "When the sun came up", "On a Sunday in winter",
)  # fmt: skip
ANIMALS = (
    "a bee", "an owl", "a fox", "a bear", "a rabbit", "a duck", "a cow", "a horse", "a sheep", "a pig", "a hen",
    "a cat", "a dog", "a mouse", "a frog", "a turtle", "a snake", "a fish", "a whale", "a dolphin", "a shark",
    "a crab", "a snail", "a worm", "a butterfly", "a spider", "an ant", "a ladybug", "a bat", "a squirrel",
    "a hedgehog", "a deer", "a wolf", "a lion", "a tiger", "an elephant", "a giraffe", "a monkey", "a penguin",
    "a polar bear", "a camel", "a kangaroo", "a parrot", "an eagle", "a swan", "a goose", "a beaver", "an otter",
    "a seal", "an octopus",
)  # fmt: skip
FOODS = (
    "bread", "milk", "cheese", "butter", "honey", "rice", "soup", "salt", "sugar", "chocolate", "jam",
    "apple juice", "yogurt", "ice cream", "pasta", "pancake batter", "corn", "tea", "flour", "popcorn",
    "tomato sauce", "oatmeal", "peanut butter", "salad", "cake", "cereal", "porridge", "toast", "pizza", "water",
)  # fmt: skip
TOOLS = (
    "a hammer", "a saw", "a ladder", "a broom", "a spoon", "a needle", "a pair of scissors", "a pencil",
    "an eraser", "a ruler", "a book", "a clock", "a mirror", "a lamp", "a candle", "a key", "a door", "a window",
    "a bed", "a chair", "a table", "an oven", "a refrigerator", "a kettle", "a towel", "a toothbrush",
    "a bar of soap", "an umbrella", "a backpack", "a map", "a compass", "a magnet", "a battery", "a flashlight",
    "a telephone", "a camera", "a wheel", "a rope", "a bucket", "a shovel", "a rake", "a paintbrush", "a kite",
    "a drum", "a whistle", "a thermometer", "a magnifying glass", "a zipper", "a button", "a blanket",
)  # fmt: skip
WEATHER = (
    "rain", "snow", "wind", "fog", "thunder", "lightning", "hail", "frost", "ice", "dew", "sunshine", "a rainbow",
    "a cloud", "a storm", "the sunrise", "the sunset", "a shadow", "an echo", "the tide", "a puddle", "summer",
    "winter", "spring", "autumn", "night", "the moon", "a star", "the sea", "a river", "a mountain", "a desert",
    "an island", "sand", "mud", "smoke", "steam",
)  # fmt: skip
BODY_PARTS = (
    "eyes", "ears", "hands", "fingers", "feet", "toes", "teeth", "bones", "muscles", "lungs", "nails", "eyebrows",
    "eyelashes", "knees", "elbows", "lips", "shoulders", "tears", "dreams", "freckles",
)  # fmt: skip
PLANTS = (
    "a tree", "a rose", "a sunflower", "grass", "moss", "a cactus", "an apple tree", "a bean", "a carrot",
    "a potato", "a pumpkin", "a strawberry", "a mushroom", "a dandelion", "a pine tree", "an oak", "wheat",
    "a tulip", "ivy", "a water lily", "a grape vine", "a cabbage", "a tomato plant", "a daisy", "bamboo",
)  # fmt: skip
VEHICLES = (
    "a bicycle", "a bus", "a train", "a boat", "a plane", "a car", "a truck", "a tractor", "a fire engine",
    "an ambulance", "a submarine", "a sled", "a hot air balloon", "a ferry", "a tram", "a helicopter", "a canoe",
    "a sailing boat", "a scooter", "a wheelbarrow",
)  # fmt: skip
JOBS = (
    "a baker", "a farmer", "a teacher", "a doctor", "a nurse", "a firefighter", "a gardener", "a builder",
    "a painter", "a cook", "a bus driver", "a pilot", "a sailor", "a librarian", "a shopkeeper", "a tailor",
    "a carpenter", "a dentist", "a mail carrier", "a beekeeper", "a fisherman", "a plumber", "a musician", "a vet",
)  # fmt: skip
GOOD_DEEDS = (
    "share your toys", "say sorry", "tell the truth", "wait for your turn", "listen to a friend", "help at home",
    "keep a promise", "say thank you", "ask for help", "include a new classmate", "forgive a friend",
    "brush your teeth", "wash your hands", "go to bed early", "eat vegetables", "drink water", "wear a helmet",
    "look both ways", "play outside", "read books", "clean your room", "feed a pet", "save water", "plant a tree",
    "be patient", "try again", "speak kindly", "cover your mouth when you cough", "put on a coat in winter",
    "be careful with fire",
)  # fmt: skip
EVENTS = (
    "a friend is sad", "you are lost", "you are angry", "you cannot sleep", "you break something",
    "it rains all day", "a friend moves away", "you lose a game", "you feel afraid", "you are bored",
    "someone is mean to you", "you have a cold", "you start at a new school", "a friend is sick",
    "you find something that is not yours", "you have made a mistake", "you meet someone new", "your pet is sick",
    "you spill your drink", "two friends argue",
)  # fmt: skip
