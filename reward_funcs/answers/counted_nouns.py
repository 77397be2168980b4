"""Nouns that are counted: they may follow a number and leave its value as it is (`12 eggs`), which `dozen` and
`halves` do not.

From the questions of GSM8K and MATH (what follows a number, or "how many"), but for the words that change a value.
"""

NOUNS = frozenset(
    """
acorns adults airplanes albums alligators angles animals antacids ants apartments appetizers apples applications
appointments apps arms arrangements articles artworks athletes atoms attendees avocados babies backpacks badges
bagels bags baguettes bales balloons balls bananas bandages bands barrels bars baseballs basketballs baskets
batches bathrooms bats beads beakers beans bears beats bedrooms beds bees belts benches berries bicycles bikes
bills birdhouses birds biscuits bits blankets blocks blouses blueberries boards boats bolts bones books bottles
bounces bouquets bowls boxes boys bracelets branches breaks bricks brochures brothers brownies buckets bugs
builders buildings bulbs bulldogs bunches bundles bunnies buns burgers burritos buses bushels bushes butterflies
buttons bytes cages cakes calculators calls calories campers candies candles canes canoes cans caps capsules
cardinals cards carnations carriages carrots cars cartons cases caterpillars cats cattle cells centers chairs
channels chaperones chapters characters charges cheerleaders cheesecakes cheeses cherries chickens chicks
chihuahuas child children chips chocolates choices chores circles cities clarinets class classes classmates
classrooms clerks clients clothes clouds clovers clubs clusters coaches coats cobs coconuts codes coffees coins
collections collectors colors columns combinations comics committees computers cones containers cookies coolers
copies counters countries couples coupons courses cows crabs crackers cranberries crates crayons creams credits
crickets croissants crows cubes cubs cucumbers cupcakes cups customers cycles daisies dandelions daps dates
daughters decks decorations deer democrats desserts devices diagonals diamonds diapers dice digits dimes dishes
divisors dogs dolls dolphins donations donuts doors dots doughnuts doughs drawings draws dress dresses drinks
driveways drops drums dryers ducklings ducks earrings ears edges eggplants eggs electrons elements elephants emails
employees emus enemies entrees envelopes episodes equations erasers events exams eyes faces factors falls families
fans feathers females fences ferns fields fights figures figurines files fireworks fish fishes flags flavors fleas
flies flights floors flowers flyers folders followers forks foxes frames friends fries frogs fruits functions games
geckos geese gems gemstones geraniums gifts giraffes girls glass glasses gnomes goals goats graders grains grapes
grass groceries groups guests guitars gumballs guns guppies haircuts hamburgers hamsters hands handshakes hats
heads hearts hens highlighters hits hives holes homes hops horses hospitals hotdogs houses humans individuals
ingredients insects installments integers intersections invitations iphones islands items jackets jacks jars jeans
jellybeans jerseys jewels jugs juices jumps kangaroos kernels keys kids kindergartners kinds kittens kiwis knives
ladies ladybugs lambs lamps laps lattes lawns layers leaves ledges legos legs lemons leopards lessons letters
levels lights lilies limbs lines lineups lions lists lizards loaves logs lollipops macarons macaroons machines
magazines magnets males man mangoes mangos marbles markers marks marshmallows masks matches matchsticks materials
matrices meals meatballs medals members men messages mice milk milkshakes minnows models molecules money monitors
monkeys motorcycles moves movies muffins mugs mushrooms nails napkins necklaces neighbors nephews neutrons
newspapers nickels nieces nights notebooks notes novels nuggets numbers nuts oats objects offices omelets ones
onions oranges orchids orders oreos outcomes outfits oxen oysters packages packets packs pages pails paintings
palindromes pancakes pandas panels pans pants papayas paperclips papers paragraphs parents parrots participants
particles parts passengers passes pastries patches paths patients peaches peanuts pears pebbles pencils penguins
pennies pens people peppers percent periods permutations person persons pesos petals pets petunias phones
photographs photons photos pictures pieces pies pigeons piglets pigs piles pillows pills pineapples pins pixels
pizzas planks plans plants plates players plums pods points polynomials pomelos poodles pools popsicles portions
portraits positions possibilities postcards posters potatoes pots pouches presents pretzels prints problems
products protons puffs pumpkins pumps pupils puppies pups pushups puzzles questions quiches quizzes rabbits racers
racquets raisins ranks raspberries rats recipes records rectangles regions reports representatives republicans
requests residents restaurants revolutions rhinos rides rings rocks rolls roommates rooms roosters roots ropes
roses rotations rounds routes rows rubies rungs sacks salads sales samples sandwiches saplings sausages scarves
schools scoops screens screws seashells seasons seats sections seedlings seeds segments semesters sentences
sequences servings sessions sets settings shares sharks sheep sheets shells shelves shepherds shingles shirts shoes
shots shows siblings sides sightings signatures signs singers sisters situps skeins skips skirts sleeves slices
snacks snails snakes snickers snowballs snowflakes socks sodas solutions songs sons spaces spears species spiders
spokes spools spoons spots squares squirrels stacks staff stairs stalks stamps stars starters states statues steaks
steps stickers sticks stitches stones stools stops stores stories strawberries straws streetlights strings stripes
strips students subjects subsets suckers suitcases suits sundays sunflowers supplements supplies surfers swallows
sweaters sweets swords systems tables tablespoons tablets tadpoles tails tanks tarantulas tasks teachers teams
teaspoons teeth televisions tents terms tests textbooks texts things throws tickets ties tigers tiles tins tips
tires tissues toads toddlers toenails tokens tomatoes toothbrushes toothpicks toppings tosses touchdowns towels
toys tractors trains trays treats trees trials triangles tricycles triples trips trucks trumpets tubes tubs tulips
tunas tuples turkeys turns turtles twigs types unicorns utensils vaccines values vampires vans vegetables vehicles
vertices videos vines visitors visits voters votes walls walnuts washes water watermelons ways whales wheels
widgets windows wings wins wipes wishes woman women words workdays workers works worms yogurts zebras zones
""".split()
)


def is_counted_noun(word: str) -> bool:
    """Whether a word in small letters is one of them, in the singular or the plural."""
    plurals = (word, word + "s", word + "es", word[:-1] + "ies") if word not in ("point", "root") else (word,)
    return any(plural in NOUNS for plural in plurals)
